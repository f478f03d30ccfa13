"""What several commands ask for in the same words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent import defaults
from safi_agent.errors import SafiError
from safi_agent.values import shipped

if TYPE_CHECKING:
    from safi_agent.store import Store

Values = Annotated[str, typer.Option(help=f"One of {', '.join(shipped())}, or a YAML file.")]
Model = Annotated[
    str | None,
    typer.Option(
        help='A name for init_chat_model, or "offline" to rehearse. Default: gpt-4o, which needs OPENAI_API_KEY.'
    ),
]
Database = Annotated[str, typer.Option(help="The store's URL.")]
Log = Annotated[Path, typer.Option(help="The log.")]

STORE = defaults.STORE
LOG = Path(defaults.LOG)


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print an error as one line instead of a traceback, and exit with 2."""
    try:
        yield
    except (SafiError, ValueError, ImportError, OSError) as error:
        typer.echo(f"safi {command}: {_words(error)}", err=True)
        raise typer.Exit(2) from None


def _words(error: Exception) -> str:
    """The text of an error; of a ValidationError without pydantic's layout."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    said = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors(include_input=False)]
    return " ".join(f"{f'{where}: ' if where else ''}{what.removeprefix('Value error, ')}" for where, what in said)


def open_existing_store(url: str) -> "Store":
    """Open an existing store, without creating one.

    Raises:
        ValueError: it is not there, or cannot be opened.
    """
    from sqlalchemy import make_url

    from safi_agent.store import open_store
    from safi_agent.store.database_errors import opening

    database = opening(make_url)(url).database if url.startswith("sqlite") else None
    if database is not None and not Path(database).is_file():
        raise ValueError(f"store: expected one that is there, got {url!r}.")
    try:
        return open_store(url)
    except ImportError as error:
        raise ValueError(str(error)) from None
