"""SAFi for LangChain: a runnable that answers only what its Will approves, and audits every answer.

Importing the package loads neither LangChain nor the database. A public name is loaded when it is first used, so that
the command ``safi`` can print its help without delay.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

REQUIRED = (
    "cryptography",
    "filelock",
    "langchain",
    "langchain_core",
    "langchain_openai",
    "opentelemetry",
    "pydantic",
    "regex",
    "sqlalchemy",
    "typer",
    "yaml",
)
if _missing := [name for name in REQUIRED if find_spec(name) is None]:
    raise ImportError(f'{", ".join(_missing)} not installed: pip install "sal-lightning[safi]"', name=__name__)

if TYPE_CHECKING:
    from safi_agent.agents.tools import ToolRule
    from safi_agent.audit.finished import Audit
    from safi_agent.chain import SafiChain, create_safi_chain
    from safi_agent.errors import (
        AuditFailedError,
        AuditTimeoutError,
        BacklogError,
        ClosedError,
        IntellectError,
        JudgeUnavailableError,
        OutboxError,
        RedactionError,
        SafiError,
        UnknownTurnError,
        ViolationError,
    )
    from safi_agent.faculties.spirit import Assessment, assess
    from safi_agent.hooks import Alert
    from safi_agent.ledger import Finding
    from safi_agent.lifecycle import DrainResult
    from safi_agent.middleware import SafiMiddleware
    from safi_agent.prompts import Prompts
    from safi_agent.sampling import Sampling
    from safi_agent.store.backlog import Backlog
    from safi_agent.values import Value, ValueSet, load_values

__all__ = [
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
_MODULES = {
    "agents.tools": ("ToolRule",),
    "chain": ("SafiChain", "create_safi_chain"),
    "audit.finished": ("Audit",),
    "errors": (
        "AuditFailedError",
        "AuditTimeoutError",
        "BacklogError",
        "ClosedError",
        "IntellectError",
        "JudgeUnavailableError",
        "OutboxError",
        "RedactionError",
        "SafiError",
        "UnknownTurnError",
        "ViolationError",
    ),
    "faculties.spirit": ("Assessment", "assess"),
    "hooks": ("Alert",),
    "ledger": ("Finding",),
    "lifecycle": ("DrainResult",),
    "middleware": ("SafiMiddleware",),
    "prompts": ("Prompts",),
    "sampling": ("Sampling",),
    "store.backlog": ("Backlog",),
    "values": ("Value", "ValueSet", "load_values"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package, loaded on first use."""
    if name in _MODULE_OF:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that are completed at a prompt."""
    return sorted({*globals(), *__all__})
