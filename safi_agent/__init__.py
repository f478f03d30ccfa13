"""SAFi for LangChain: a runnable that answers only what its Will lets through, and audits every answer.

Importing it loads neither LangChain nor the database: that waits until one of its names is used, so that the command
``safi`` can say at once what it does.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safi_agent.public import *  # noqa: F403 (its __all__ is what is meant)

NEEDED = (
    "filelock",
    "langchain",
    "langchain_core",
    "langchain_openai",
    "pydantic",
    "regex",
    "sqlalchemy",
    "typer",
    "yaml",
)
if _missing := [name for name in NEEDED if find_spec(name) is None]:
    raise ImportError(f'{", ".join(_missing)} not installed: pip install "sal-lightning[safi]"', name=__name__)


def __getattr__(name: str) -> Any:
    """``__all__`` and what is in it; the package's modules are there once it is loaded."""
    public = import_module("safi_agent.public")
    if name in globals():
        return globals()[name]
    try:
        return getattr(public, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    """What is completed at a prompt."""
    return sorted({*globals(), *import_module("safi_agent.public").__all__})
