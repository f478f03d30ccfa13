"""Where the commands ``sal`` and ``safi`` start. Nothing else is loaded until it is known what is asked."""

import sys
from importlib import import_module


def sal() -> None:
    """What Self-Alignment Learning did in a training."""
    _start("sal", "sal_cli.sal", extra="report")


def safi() -> None:
    """Governed answers, audited value by value."""
    _start("safi", "safi_agent.cli", extra="safi")


def _start(name: str, module: str, extra: str) -> None:
    try:
        app = import_module(module).app
    except ModuleNotFoundError as error:
        sys.exit(f'{name}: {error.name} not installed: pip install "sal-lightning[{extra}]"')
    except ImportError as error:  # of safi_agent, which names all that is missing
        sys.exit(f"{name}: {error}")
    app(prog_name=name)
