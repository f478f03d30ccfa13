"""The package stands alone."""

import subprocess
import sys

import pytest

import safi_agent

# One interpreter, in which nothing was imported before, answers all of this.
FRESH = """
import sys
import safi_agent
print(*{'langchain', 'langchain_core', 'sqlalchemy', 'sal_page'} & set(sys.modules))
print(safi_agent.load_values('civic').name)
assert safi_agent.errors.OutboxError is safi_agent.OutboxError
assert set(safi_agent.__all__) <= set(dir(safi_agent))
from safi_agent import *
create_safi_chain('offline', store=None, log=None).invoke('a')
print(*{'sal_lightning', 'torch', 'lightning'} & set(sys.modules))
"""


@pytest.mark.slow
def test_importing_it_loads_langchain_and_the_database_when_a_name_is_used_and_a_turn_needs_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\ncivic\n\n"


def test_the_public_list_is_what_others_rely_on() -> None:
    assert sorted(safi_agent.__all__) == [
        "Alert",
        "Assessment",
        "Audit",
        "AuditFailedError",
        "AuditTimeoutError",
        "Backlog",
        "BacklogError",
        "ClosedError",
        "DrainResult",
        "Finding",
        "IntellectError",
        "JudgeUnavailableError",
        "OutboxError",
        "Prompts",
        "RedactionError",
        "SafiChain",
        "SafiError",
        "SafiMiddleware",
        "Sampling",
        "ToolRule",
        "UnknownTurnError",
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
