"""The PostgreSQL backend, for several processes and machines; audits are jobs of a queue in the same database.

A commit waits for the server's disk, unless the server is configured otherwise (``synchronous_commit``).
"""

import re
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, func, select, text
from sqlalchemy.dialects import postgresql
from typing_extensions import override

from safi_agent.store.database import ForkSafeEngine, Task
from safi_agent.store.database_errors import EarlierRowsKeptError
from safi_agent.store.interruptible_lock import CHECK_INTERVAL, TransactionBlock
from safi_agent.store.job_queue import (
    count_untaken,
    create_queue_tables,
    delete_jobs,
    delete_settle_jobs,
    enqueue_job,
)
from safi_agent.store.schema_version import create_tables
from safi_agent.store.tables import turns
from safi_agent.store.timeout_budget import STORE_TIMEOUT, current_timeout_budget

PURGE_TIMEOUT = 5.0  # seconds for which a purge is repeated while short transactions keep earlier versions of rows
PURGE_INTERVAL = 0.1
CREATE_TABLES = 0x5AF1  # advisory lock of the process that creates the tables
COMMIT_ORDER = 0x5AF3  # advisory lock of the commit order
_LOCK_COMMIT_ORDER = select(func.pg_advisory_xact_lock(COMMIT_ORDER))
_SET_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :most, true)")


class Postgres(ForkSafeEngine):
    """A pool of connections, which are tested before use because the server may have been restarted."""

    insert = staticmethod(postgresql.insert)

    def __init__(self, url: URL) -> None:
        self.url = url
        super().__init__()
        with self.transaction() as c:
            c.execute(_SET_LOCK_TIMEOUT, {"most": "0"})  # another process may be creating the tables
            c.execute(select(func.pg_advisory_xact_lock(CREATE_TABLES)))
            create_tables(c)
            create_queue_tables(c)

    @override
    def _open_engine(self) -> None:
        self._mutex = threading.RLock()
        self._open_transactions: dict[int, _Transaction] = {}
        self._checked_at = time.monotonic()
        super()._open_engine()

    @override
    def _create_engine(self) -> Engine:
        query = self.url.query
        own = query.get("options", ())
        options = (f"-c lock_timeout={int(1000 * STORE_TIMEOUT)}", *((own,) if isinstance(own, str) else own))
        arguments: dict[str, Any] = {"options": " ".join(options)}
        if "connect_timeout" not in query:
            arguments["connect_timeout"] = int(STORE_TIMEOUT)
        return create_engine(
            self.url, pool_pre_ping=True, pool_timeout=STORE_TIMEOUT, hide_parameters=True, connect_args=arguments
        )

    def transaction(self, *, reading: bool = False) -> "_Transaction":
        """A transaction, which is rolled back if its block raises.

        Raises:
            SQLAlchemyError: the server failed, or was waited for in vain.
        """
        return _Transaction(self)

    def register(self, one: "_Transaction") -> None:
        """Register a transaction, and close the connections of transactions that were interrupted at their end."""
        with self._mutex:
            self._open_transactions[id(one)] = one
            if (now := time.monotonic()) - self._checked_at < CHECK_INTERVAL:
                return
            self._checked_at = now
            over = [other for other in self._open_transactions.values() if other.is_over()]
        for other in over:
            other.close(clean=False)

    def unregister(self, one: "_Transaction") -> None:
        """Unregister a transaction."""
        self._open_transactions.pop(id(one), None)

    def enqueue(self, c: Connection, task: Task, value_set: str, key: str, turn_id: str) -> None:
        """Enqueue a job that becomes visible when this transaction is committed."""
        enqueue_job(c, task, value_set, key, turn_id)

    def lock_commit_order(self, c: Connection) -> None:
        """Lock the commit order until this transaction has ended: the lock is released after the commit."""
        c.execute(_LOCK_COMMIT_ORDER)

    def withdraw(self, c: Connection, value_set: str, turn_ids: Sequence[str]) -> None:
        """Delete the jobs of these turns."""
        delete_jobs(c, value_set, turn_ids)

    def withdraw_settled(self, c: Connection, turn_ids: Sequence[str]) -> None:
        """Delete the waiting jobs of these turns, which are settled."""
        delete_settle_jobs(c, turn_ids)

    def count_untaken(self, c: Connection, value_set: str) -> int:
        """The number of due jobs of a value set that no worker takes."""
        return count_untaken(c, value_set)

    def purge(self) -> None:
        """Write the table of turns anew. The server's write-ahead log has its own time of retention.

        Nobody can read or write the table meanwhile.

        Raises:
            EarlierRowsKeptError: another transaction can still read earlier versions of rows.
            SQLAlchemyError: the server failed, or was waited for in vain.
        """
        deadline = time.monotonic() + PURGE_TIMEOUT
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while kept := _vacuum(connection):
                if time.monotonic() >= deadline:
                    break
                time.sleep(PURGE_INTERVAL)
        if kept:
            raise EarlierRowsKeptError(
                f"{kept} earlier versions of rows of {turns.name} are kept, because a transaction that can read them "
                "is open: in a session, prepared, or of a replication slot. End it, and erase again."
            )

    def checkpoint(self) -> None:
        """Do nothing: the server runs its own checkpoints."""


def _vacuum(connection: Connection) -> int:
    """Write the table of turns anew; returns the number of deleted versions of rows that are kept."""
    details: list[str] = []

    def add_detail(notice: Any) -> None:
        details.append(notice.message_detail or "")

    server: Any = connection.connection.dbapi_connection
    server.add_notice_handler(add_detail)
    try:
        connection.execute(text(f"VACUUM (FULL, VERBOSE) {turns.name}"))
    finally:
        server.remove_notice_handler(add_detail)
    # "0 dead row versions cannot be removed yet.", in the language of the server
    counts = [int(match[0]) for detail in details if (match := re.match(r"\d+", detail))]
    if not counts:
        raise EarlierRowsKeptError("The server does not report the versions of rows that it keeps.")
    return sum(counts)


class _Transaction(TransactionBlock):
    """A transaction; its connection is returned to the pool or closed even if it is interrupted."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        self._connection: Connection | None = None

    def __enter__(self) -> Connection:
        self.begin(sys._getframe(1))
        self._waiting = current_timeout_budget().wait()
        try:
            self._database.register(self)
            left = self._waiting.left
            self._connection = connection = self._database.engine.connect()
            connection.begin()
            if left < STORE_TIMEOUT - 1:  # otherwise the connection's own timeout applies
                connection.execute(_SET_LOCK_TIMEOUT, {"most": str(max(1, int(1000 * left)))})
            return connection
        except BaseException:
            self.close(clean=False)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clean = False
        try:
            if kind is None and self._connection is not None:
                self._connection.commit()
            clean = kind is None or issubclass(kind, Exception)
        finally:
            self.close(clean=clean)

    def close(self, *, clean: bool) -> None:
        """Return the connection to the pool, or close it, which rolls back."""
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                if not clean and not connection.closed:
                    connection.invalidate()
                connection.close()
        finally:
            self._waiting.end()  # with a server most of a transaction's time is waiting
            self._database.unregister(self)
            self.end()
