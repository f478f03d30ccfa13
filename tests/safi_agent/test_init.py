"""The package stands alone."""

import subprocess
import sys

import pytest

import safi_agent


@pytest.mark.slow
def test_importing_it_loads_neither_sal_lightning_nor_torch() -> None:
    others = "{'sal_lightning', 'torch', 'lightning'}"
    code = f"import sys; from safi_agent import *; print(*{others} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_importing_it_loads_neither_langchain_nor_the_database_until_a_name_is_used() -> None:
    names = "{'langchain', 'langchain_core', 'sqlalchemy', 'sal_page'}"
    code = f"import sys, safi_agent; print(*{names} & set(sys.modules)); print(safi_agent.load_values('civic').name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\ncivic\n"


def test_the_public_list_is_what_others_rely_on() -> None:
    assert sorted(safi_agent.__all__) == [
        "Alert",
        "Assessment",
        "Backlog",
        "BacklogError",
        "ClosedError",
        "DrainResult",
        "Finding",
        "IntellectError",
        "OutboxError",
        "SafiChain",
        "SafiError",
        "SafiMiddleware",
        "ToolRule",
        "Value",
        "ValueSet",
        "ViolationError",
        "assess",
        "create_safi_chain",
        "load_values",
    ]
    assert all(hasattr(safi_agent, name) for name in safi_agent.__all__)


def test_a_name_that_is_not_there_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'safi_agent' has no attribute 'create_chain'"):
        safi_agent.create_chain  # noqa: B018


@pytest.mark.slow
def test_names_and_modules_are_there_though_nothing_was_imported_before() -> None:
    code = (
        "import safi_agent\n"
        "assert safi_agent.errors.OutboxError is safi_agent.OutboxError\n"
        "assert set(safi_agent.__all__) <= set(dir(safi_agent))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
