"""Durable memory: the outbox of turns, their ledgers and the long-term profile, on SQLite or PostgreSQL."""

import weakref
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL, make_url

from safi_agent.store.commits import prepare_batch
from safi_agent.store.database import Database
from safi_agent.store.database_errors import opening
from safi_agent.store.leases import LEASE
from safi_agent.store.rows import (
    Anchor,
    AuditResult,
    AuditRow,
    Commit,
    Job,
    JudgedTurn,
    Memory,
    PreparedBatch,
    ReadyBatch,
    StoredTurn,
    UnsettledTurn,
)
from safi_agent.store.sqlite import MEMORY, Sqlite
from safi_agent.store.store import Store

__all__ = [
    "LEASE",
    "Anchor",
    "AuditResult",
    "AuditRow",
    "Commit",
    "Job",
    "JudgedTurn",
    "Memory",
    "PreparedBatch",
    "ReadyBatch",
    "Store",
    "StoredTurn",
    "UnsettledTurn",
    "open_store",
    "prepare_batch",
]


_open: "weakref.WeakValueDictionary[str, Store]" = weakref.WeakValueDictionary()


@opening
def open_store(url: str | None) -> Store:
    """The store at this URL, one per database and process; with None, a new store in memory.

    Raises:
        ValueError: the URL is neither of SQLite nor of PostgreSQL, the database cannot be opened, or it was written by
            another version of the package.
        ImportError: the URL is of PostgreSQL, and the extra 'postgres' is not installed.
    """
    if url is None:
        return Store(Sqlite(MEMORY))
    try:
        parsed = make_url(url)
    except Exception:  # the input may contain a password
        raise ValueError(
            "store: expected None or a URL like 'sqlite:///safi.db', got text that is not a URL."
        ) from None
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        parsed = parsed.set(drivername="postgresql+psycopg")
        return _cached(parsed.render_as_string(hide_password=False), lambda: _postgres(parsed))
    if parsed.get_backend_name() != "sqlite":
        expected = "a URL that begins with 'sqlite://' or 'postgresql+psycopg://'"
        raise ValueError(f"store: expected {expected}, got {parsed.render_as_string()!r}.")
    if parsed.database in (None, "", ":memory:"):
        return Store(Sqlite(MEMORY))
    path = Path(str(parsed.database)).absolute()
    if not path.parent.is_dir():
        raise ValueError(f"store: expected a file in an existing folder, got {str(path)!r}.")
    return _cached(f"sqlite:///{path}", lambda: Sqlite(f"sqlite:///{path}"))


def _cached(name: str, connect: Callable[[], Database]) -> Store:
    store = _open.get(name)
    if store is None:
        store = _open[name] = Store(connect())
    return store


def _postgres(url: URL) -> Database:
    try:
        from safi_agent.store.postgres import Postgres
    except ImportError as error:
        raise ImportError(
            f"store: PostgreSQL needs the extra 'postgres' of this package; {error.name!r} is not installed."
        ) from error
    return Postgres(url)
