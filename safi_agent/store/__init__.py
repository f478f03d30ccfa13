"""Durable memory: the outbox of turns, their ledgers, and μ. SQLAlchemy Core on SQLite.

A turn's row goes ``pending → judged → done``; one that needs no audit starts as ``judged``. Rows of one memory key
become done in the order of their turns, whoever judged them and when: that is decided in the transaction that does it.
"""

import os
import weakref
from pathlib import Path

from sqlalchemy import make_url

from safi_agent.store.lane import Lane
from safi_agent.store.leases import LEASE, Leases
from safi_agent.store.lines import Lines
from safi_agent.store.rows import BusyError, Commit, Job, Memory, Row
from safi_agent.store.sqlite import MEMORY, Sqlite

__all__ = ["LEASE", "BusyError", "Commit", "Job", "Memory", "Row", "Store", "open_store"]


class Store(Lane, Leases, Lines):
    """All that is remembered; every method is one transaction."""

    def __init__(self, database: Sqlite) -> None:
        super().__init__(database)
        _all.add(self)


_open: "weakref.WeakValueDictionary[str, Store]" = weakref.WeakValueDictionary()
_all: "weakref.WeakSet[Store]" = weakref.WeakSet()


def open_store(url: str | None) -> Store:
    """The store at this URL; one for each file in a process, a new one for each None.

    Raises:
        ValueError: the URL is not one of SQLite, or its folder is not there.
    """
    if url is None:
        return Store(Sqlite(MEMORY))
    try:
        parsed = make_url(url)
    except Exception:
        raise ValueError(f"store: expected None or a URL like 'sqlite:///safi.db', got {url!r}.") from None
    if parsed.get_backend_name() != "sqlite":
        raise ValueError(f"store: expected a URL that begins with 'sqlite://', got {url!r}.")
    if parsed.database in (None, "", ":memory:"):
        return Store(Sqlite(MEMORY))
    path = Path(str(parsed.database)).absolute()
    if not path.parent.is_dir():
        raise ValueError(f"store: expected a file in a folder that is there, got {str(path)!r}.")
    full = f"sqlite:///{path}"
    store = _open.get(full)
    if store is None:
        store = _open[full] = Store(Sqlite(full))
    return store


def _after_fork() -> None:
    for store in list(_all):
        store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
