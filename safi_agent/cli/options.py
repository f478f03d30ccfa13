"""Options and error handling shared by several commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent import defaults
from safi_agent.errors import SafiError, validation_message
from safi_agent.values import shipped
from sal_cli.shared import AGAIN, one_line

if TYPE_CHECKING:
    from safi_agent.store import Store

Values = Annotated[
    str,
    typer.Option(
        metavar="SET",
        help=f"The value set: {', '.join(shipped())}, or a YAML file.",
        autocompletion=lambda: list(shipped()),
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help='A model name for init_chat_model, or "offline" for a rehearsal model without a network. '
        "Default: gpt-4o, which needs OPENAI_API_KEY.",
    ),
]
Conscience = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help='The model that audits, or "local:FOLDER" for a judge of "safi train-judge". Default: that of --model.',
    ),
]
Escalation = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With a local judge: the model that audits where the judge is unsure."),
]
Database = Annotated[str, typer.Option(metavar="URL", help="URL of the store.")]
Log = Annotated[Path, typer.Option(metavar="FILE", help="Path of the log.")]
LogFile = Annotated[
    Path, typer.Argument(metavar="[LOG]", help="Path of the log; rotated files beside it are included.")
]

Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Longest time to wait.", min=0)]

STORE = defaults.STORE
LOG = Path(defaults.LOG)
_CONTROL_CHARACTERS = {n: "\ufffd" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}


def printable(text: str) -> str:
    """The text with its terminal control characters replaced: an answer could contain escape sequences."""
    return text.translate(_CONTROL_CHARACTERS)


@contextmanager
def one_line_errors(command: str, *, about: object = None, interrupted: str = AGAIN) -> Iterator[None]:
    """Print an error as one line instead of a traceback, and exit with code 2; on Ctrl-C, say how to go on.

    Args:
        command: the command, without "safi".
        about: what could not be done, such as "log.json: not checked"; it is put before the error.
        interrupted: the sentence that is printed after Ctrl-C, which exits with code 130.
    """
    with one_line(f"safi {command}", _Reworded, interrupted=interrupted):
        try:
            yield
        except (SafiError, ValueError, ImportError, OSError) as error:
            from pydantic import ValidationError

            message = validation_message(error) if isinstance(error, ValidationError) else str(error)
            raise _Reworded(message if about is None else f"{about}: {message}") from None


class _Reworded(Exception):
    """Carries the text of an error to where it is printed."""


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
