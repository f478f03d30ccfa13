"""A database of PostgreSQL, for several processes on several machines; audits are jobs of a queue in the same database.

A commit waits for the server's disk, unless the server was told otherwise (``synchronous_commit``).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Connection, create_engine, func, select
from sqlalchemy.dialects import postgresql
from typing_extensions import override

from safi_agent.store.access import Task
from safi_agent.store.engine import OwnEngine
from safi_agent.store.queue import make_tables, put
from safi_agent.store.rows import BusyError
from safi_agent.store.versions import bring_up

UPGRADE = 0x5AF1  # the advisory lock of those who make or change tables


class Postgres(OwnEngine):
    """A pool of connections, which are looked at before they are used: a server may have been restarted."""

    insert = staticmethod(postgresql.insert)

    def __init__(self, url: URL) -> None:
        self.url = url
        self._connect()
        with self.transaction() as c:
            c.execute(select(func.pg_advisory_xact_lock(UPGRADE)))
            bring_up(c)
            make_tables(c)

    @override
    def _connect(self) -> None:
        self._hold(create_engine(self.url, pool_pre_ping=True, hide_parameters=True))

    @contextmanager
    def transaction(self, *, reading: bool = False, patient: bool = True) -> Iterator[Connection]:
        """A transaction; it is undone if what is done in it raises.

        Raises:
            BusyError: ``patient`` is False; a server is always waited for.
        """
        if not patient:
            raise BusyError
        with self.engine.begin() as connection:
            yield connection

    def enqueue(self, c: Connection, task: Task, value_set: str, key: str, turn_id: str) -> None:
        """Have some process do this, from the moment this transaction is committed."""
        put(c, task, value_set, key, turn_id)

    def checkpoint(self) -> None:
        """Nothing: the server does that by itself."""
