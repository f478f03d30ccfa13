"""Options and error handling shared by several commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent import defaults
from safi_agent.errors import SafiError, validation_message
from safi_agent.values import shipped

if TYPE_CHECKING:
    from safi_agent.store import Store

Values = Annotated[str, typer.Option(help=f"The value set: {', '.join(shipped())}, or a YAML file.")]
Model = Annotated[
    str | None,
    typer.Option(
        help='A model name for init_chat_model, or "offline" for a rehearsal model without a network. '
        "Default: gpt-4o, which needs OPENAI_API_KEY."
    ),
]
Database = Annotated[str, typer.Option(help="URL of the store.")]
Log = Annotated[Path, typer.Option(help="Path of the log.")]

STORE = defaults.STORE
LOG = Path(defaults.LOG)
_CONTROL_CHARACTERS = {n: "\ufffd" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}


def printable(text: str) -> str:
    """The text with its terminal control characters replaced: an answer could contain escape sequences."""
    return text.translate(_CONTROL_CHARACTERS)


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print an error as one line instead of a traceback, and exit with code 2."""
    try:
        yield
    except (SafiError, ValueError, ImportError, OSError) as error:
        from pydantic import ValidationError

        message = validation_message(error) if isinstance(error, ValidationError) else error
        typer.echo(f"safi {command}: {message}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def existing_store(url: str) -> Iterator["Store"]:
    """Context manager: an existing store, whose connections are closed at the end.

    Raises:
        ValueError: the database does not exist or cannot be opened.
    """
    from sqlalchemy import make_url

    from safi_agent.store import open_store
    from safi_agent.store.database_errors import opening

    database = opening(make_url)(url).database if url.startswith("sqlite") else None
    if database is not None and not Path(database).is_file():
        raise ValueError(f"store: expected an existing database, got {url!r}.")
    try:
        store = open_store(url)
    except ImportError as error:
        raise ValueError(str(error)) from None
    try:
        yield store
    finally:
        store.database.engine.dispose()
