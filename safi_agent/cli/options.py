"""What several commands ask for in the same words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent.values import shipped

if TYPE_CHECKING:
    from safi_agent.store import Store

Values = Annotated[str, typer.Option(help=f"One of {', '.join(shipped())}, or a YAML file.")]
Model = Annotated[str | None, typer.Option(help='For init_chat_model, or "offline". Default: gpt-4o if it has a key.')]
Database = Annotated[str, typer.Option(help="The store's URL.")]
Log = Annotated[Path, typer.Option(help="The log.")]

STORE = "sqlite:///safi.db"
LOG = Path("saf-spirit-log.json")


def kept_store(url: str) -> "Store":
    """A store that is there already: who only wants to read must not make one.

    Raises:
        ValueError: it is not there, or cannot be opened.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from safi_agent.store import open_store

    try:
        database = make_url(url).database if url.startswith("sqlite") else None
        if database is not None and not Path(database).is_file():
            raise ValueError(f"store: expected one that is there, got {url!r}.")
        return open_store(url)
    except (SQLAlchemyError, ImportError) as error:  # whose text may hold a password
        raise ValueError(f"store: expected one that can be opened, got {type(error).__name__}.") from None
