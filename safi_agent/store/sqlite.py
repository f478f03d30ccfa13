"""The SQLite backend, in a file (WAL mode) or in memory: one connection, used by one thread at a time.

A commit survives a crash of the process at any point; after a power failure SQLite may lose the last commits, because
``synchronous=NORMAL`` does not wait for the disk.
"""

import logging
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as WaitedTooLongError
from sqlalchemy.pool import StaticPool
from typing_extensions import override

from safi_agent.fork_safety import LOCK_TIMEOUT
from safi_agent.store.database import ForkSafeEngine, Task
from safi_agent.store.interruptible_lock import InterruptSafeLock, TransactionBlock
from safi_agent.store.schema_version import VERSION, create_tables, refuse_other_versions, version_of
from safi_agent.store.timeout_budget import STORE_TIMEOUT, TimeoutBudget, Wait, current_timeout_budget

log = logging.getLogger("safi_agent")
MOST_PAGES = 20_000  # of the write-ahead log before SQLite runs its own checkpoint
MEMORY = "sqlite://"
STATEMENT_TIMEOUT = (
    5.0  # seconds for a statement of a transaction that has begun: in a write-ahead log nothing is waited for then
)


class _BusyError(Exception):
    """Another process holds the write lock."""


class Sqlite(ForkSafeEngine):
    """A database in a file, or in memory until the process ends."""

    insert = staticmethod(sqlite.insert)

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__()
        self._prepare()

    @override
    def _open_engine(self) -> None:
        self._lock = InterruptSafeLock()
        self._fork_block: _ForkBlock | None = None
        self._checkpointing = threading.Lock()
        self._checkpoint_locked = False
        self._broken = False  # the connection may be in an undefined state and must be replaced
        if self._is_memory:
            self._keep_memory()
        super()._open_engine()

    def _keep_memory(self) -> None:
        """Keep a database in memory alive by a second connection, since the first may be replaced."""
        self._name = f"file:safi-{uuid4().hex}?mode=memory&cache=shared"
        self._keeper = sqlite3.connect(self._name, uri=True, check_same_thread=False)
        self._keeper_finalizer = weakref.finalize(self, self._keeper.close)

    @override
    def _create_engine(self) -> Engine:
        url = f"sqlite:///{self._name}&uri=true" if self._is_memory else self.url
        arguments = {"check_same_thread": False, "timeout": STATEMENT_TIMEOUT, "factory": _Connection}
        engine = create_engine(url, poolclass=StaticPool, connect_args=arguments, hide_parameters=True)
        opened = self._opened = list[sqlite3.Connection]()
        event.listen(engine, "connect", lambda connection, _: opened.append(connection))
        event.listen(engine, "connect", prepare)
        event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self) -> None:
        """Create the tables if they do not exist."""
        if not self._is_memory and not (path := Path(self._path)).exists():
            with suppress(OSError):  # SQLite's own error is more specific
                path.touch(mode=0o600)  # as private as the log; SQLite gives its other files the same mode
        with self.transaction(reading=True) as c:
            current = version_of(c) == VERSION
        if not current:
            with self.transaction() as c:
                create_tables(c)

    @property
    def _is_memory(self) -> bool:
        return self.url == MEMORY

    @property
    def _path(self) -> str:
        return self.url.removeprefix("sqlite:///")

    def transaction(self, *, reading: bool = False) -> "_Transaction":
        """A transaction, which is rolled back if its block raises.

        Raises:
            WaitedTooLongError: another process or thread held the write lock until the timeout.
        """
        return _Transaction(self, reading=reading)

    def begin(self, block: TransactionBlock, waiting: Wait, *, reading: bool) -> Connection:
        """The connection, with an exclusive transaction for this block. No lock is held while waiting for others.

        Raises:
            WaitedTooLongError: another process or thread held the write lock until the timeout.
        """
        while (free := self._lock.acquire(block, waiting)) is not None:
            try:
                self._broken |= not free
                return self._begun(reading=reading)
            except _BusyError:
                self._lock.release(block)
            if not waiting.pause():
                break
        raise WaitedTooLongError("The store was locked by another process or thread.")

    def _begun(self, *, reading: bool) -> Connection:
        if self._broken:
            self._replace()
        connection = self.engine.connect().execution_options(safi_reading=reading)
        try:
            connection.begin()
        except _BusyError:
            connection.close()
            raise
        return connection

    def end(self, block: TransactionBlock, *, clean: bool) -> None:
        """Release the lock; a connection that is not clean is closed, which rolls back."""
        if not self._lock.is_held_by(block):
            return
        try:
            if not clean:
                self._broken = True
                self._replace()
        finally:
            self._lock.release(block)

    def _replace(self) -> None:
        while self._opened:  # closed explicitly: an interrupted pool may have lost one
            self._opened[-1].close()
            self._opened.pop()
        self.engine.dispose()
        self._broken = False

    def enqueue(self, c: Connection, task: Task, value_set: str, key: str, turn_id: str) -> None:
        """Do nothing: the process that answers also audits."""

    def lock_commit_order(self, c: Connection) -> None:
        """Do nothing: only one transaction writes at a time."""

    def withdraw(self, c: Connection, value_set: str, turn_ids: Sequence[str]) -> None:
        """Do nothing: there is no queue."""

    def withdraw_settled(self, c: Connection, turn_ids: Sequence[str]) -> None:
        """Do nothing: there is no queue."""

    def count_untaken(self, c: Connection, value_set: str) -> int:
        """0: there is no queue."""
        return 0

    def checkpoint(self) -> None:
        """Checkpoint the write-ahead log into the database file, which waits for the disk."""
        if self._is_memory:
            return
        with (
            self._checkpointing,
            suppress(sqlite3.Error),
            closing(sqlite3.connect(self._path, timeout=0)) as connection,
        ):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def purge(self) -> None:
        """Write the database anew, without free space, and empty the write-ahead log.

        Others cannot write meanwhile. A reader that does not end its transaction prevents it.

        Raises:
            DBAPIError: the database failed.
            WaitedTooLongError: another process or thread used the database until the timeout.
        """
        if self._is_memory:
            return
        waiting = current_timeout_budget().wait()
        try:
            with self._checkpointing, closing(sqlite3.connect(self._path, timeout=waiting.left)) as connection:
                connection.execute("VACUUM")
                while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    if not waiting.pause():
                        raise WaitedTooLongError("The store was read by another process or thread.")
        except sqlite3.Error as error:
            raise DBAPIError.instance("VACUUM", None, error, sqlite3.Error, hide_parameters=True) from None
        finally:
            waiting.end()

    @override
    def before_fork(self) -> None:
        """Close the connection: SQLite's file locks are in process memory, which a child would copy."""
        self._fork_block = _ForkBlock()
        self._checkpoint_locked = self._checkpointing.acquire(timeout=LOCK_TIMEOUT)
        if self._lock.acquire(self._fork_block, TimeoutBudget(LOCK_TIMEOUT).wait()) is None:
            log.warning(
                "A process was forked during a transaction: the store may stay locked in the child. "
                "Fork before using the chain."
            )
        elif not self._is_memory:
            self._replace()

    @override
    def after_fork_in_parent(self) -> None:
        """Release the lock; the file is opened again on the next use."""
        if self._checkpoint_locked:
            self._checkpointing.release()
        if self._fork_block is not None:
            self._lock.release(self._fork_block)
            self._fork_block = None

    @override
    def after_fork(self) -> None:
        """In the child: open an own connection; a store in memory is empty there."""
        if self._is_memory:
            self._keeper_finalizer.detach()
            _parent_connections.append(self._keeper)
        super().after_fork()
        if self._is_memory:
            self._prepare()


_parent_connections: list[sqlite3.Connection] = []  # a child must neither use nor close them


class _Connection(sqlite3.Connection):
    """A connection that closes its cursors too, because a traceback may still refer to one.

    SQLite keeps a closed connection, and its locks, as long as one of its statements is unfinished.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    @override
    def cursor(self, *arguments: Any) -> Any:
        cursor = super().cursor(*arguments)
        self._cursors.add(cursor)
        return cursor

    @override
    def close(self) -> None:
        with suppress(sqlite3.Error):  # already closed
            for cursor in list(self._cursors):
                cursor.close()
            self.rollback()
        super().close()


class _ForkBlock(TransactionBlock):
    """The lock holder during a fork; it ends only by ``release``."""

    @override
    def is_over(self) -> bool:
        return False


class _Transaction(TransactionBlock):
    """A transaction; if it is interrupted, the lock is released and the connection replaced."""

    def __init__(self, database: Sqlite, *, reading: bool) -> None:
        self._database, self._reading = database, reading

    def __enter__(self) -> Connection:
        self.begin(sys._getframe(1))
        waiting = current_timeout_budget().wait()
        try:
            self._connection = self._database.begin(self, waiting, reading=self._reading)
            return self._connection
        except BaseException:
            self._database.end(self, clean=False)
            raise
        finally:
            waiting.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clean = False
        try:
            if kind is None:
                self._connection.commit()
            if kind is None or issubclass(kind, Exception):
                self._connection.close()  # rolls back
                clean = True
        finally:
            self._database.end(self, clean=clean)
            self.end()


def prepare(connection: Any, _: Any) -> None:
    """Set up a new connection."""
    connection.isolation_level = None  # transactions begin explicitly, in ``_begin``
    _refuse_other_versions(connection)
    _write_ahead(connection)
    for pragma in ("synchronous=NORMAL", f"wal_autocheckpoint={MOST_PAGES}"):
        connection.execute(f"PRAGMA {pragma}")


def _refuse_other_versions(connection: sqlite3.Connection) -> None:
    try:
        row = connection.execute("SELECT version FROM safi_version").fetchone()
    except sqlite3.OperationalError:
        return  # there is no version table yet
    try:
        refuse_other_versions(row[0] if row else 0)
    except ValueError:
        connection.close()
        raise


def _write_ahead(connection: Any) -> None:
    """Enable WAL mode, with retries: SQLite does not wait if another process enables it at the same time."""
    deadline = time.monotonic() + STORE_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    """Begin an immediate transaction without waiting; the caller retries without holding the lock.

    Raises:
        _BusyError: another process is writing.
    """
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")
    try:
        if connection.get_execution_options().get("safi_reading"):
            driver.execute("BEGIN")
            driver.execute(
                "SELECT 1 FROM sqlite_master LIMIT 1"
            ).fetchone()  # takes the snapshot now, so that later reads cannot fail
        else:
            # A deferred transaction fails on its first write if another process has written meanwhile.
            driver.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise _BusyError from None
        raise DBAPIError.instance("BEGIN", None, error, sqlite3.Error, hide_parameters=True) from None
    finally:
        driver.execute(f"PRAGMA busy_timeout={int(1000 * STATEMENT_TIMEOUT)}")
