"""Entry points of the commands ``sal`` and ``safi``; the packages are imported on demand."""

import sys
from importlib import import_module


def sal() -> None:
    """Reports of trainings with Self-Alignment Learning."""
    _start("sal", "sal_cli.sal", extra="report")


def safi() -> None:
    """Governed answers, audited value by value."""
    _start("safi", "safi_agent.cli", extra="safi")


def _start(name: str, module: str, extra: str) -> None:
    try:
        app = import_module(module).app
    except ModuleNotFoundError as error:
        sys.exit(f'{name}: {error.name} not installed: pip install "sal-lightning[{extra}]"')
    except ImportError as error:  # from safi_agent, whose message names the missing packages
        sys.exit(f"{name}: {error}")
    app(prog_name=name)
