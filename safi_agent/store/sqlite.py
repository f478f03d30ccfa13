"""A database of SQLite, in a file (write-ahead log) or in memory: one connection, used by one thread at a time.

A commit survives the death of the process at any point; at a power cut SQLite may lose the last ones, because
``synchronous=NORMAL`` does not wait for the disk.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import StaticPool
from typing_extensions import override

from safi_agent.store.access import Task
from safi_agent.store.engine import OwnEngine
from safi_agent.store.rows import BusyError
from safi_agent.store.versions import bring_up, newest, refuse_newer, version_of

BUSY = 30.0
MOST_PAGES = 20_000  # of the write-ahead log, should no one find the time for a checkpoint
MEMORY = "sqlite://"


class Sqlite(OwnEngine):
    """A file, or memory that ends with the process."""

    insert = staticmethod(sqlite.insert)

    def __init__(self, url: str) -> None:
        self.url = url
        self._connect()

    @override
    def _connect(self) -> None:
        """One in memory starts empty in a forked child; the parent keeps what there was."""
        self._lock = threading.RLock()
        if self.url != MEMORY and not (path := Path(self._path)).exists():
            with suppress(OSError):  # SQLite says it better
                path.touch(mode=0o600)  # it holds what the log does; SQLite gives its other files the same mode
        arguments = {"check_same_thread": False, "timeout": BUSY}
        self._hold(create_engine(self.url, poolclass=StaticPool, connect_args=arguments, hide_parameters=True))
        event.listen(self.engine, "connect", prepare)
        event.listen(self.engine, "begin", _begin)
        with self.transaction(reading=True) as c:
            current = version_of(c) == newest()
        if not current:
            with self.transaction() as c:
                bring_up(c)

    @property
    def _path(self) -> str:
        return self.url.removeprefix("sqlite:///")

    @contextmanager
    def transaction(self, *, reading: bool = False, patient: bool = True) -> Iterator[Connection]:
        """A transaction; it is undone if what is done in it raises.

        Raises:
            BusyError: someone else is writing, and ``patient`` is False.
        """
        if not self._lock.acquire(blocking=patient):
            raise BusyError
        try:
            with self.engine.connect() as plain:
                connection = plain.execution_options(safi_reading=reading, safi_patient=patient)
                with connection.begin():
                    yield connection
        finally:
            self._lock.release()

    def enqueue(self, c: Connection, task: Task, value_set: str, key: str, turn_id: str) -> None:
        """Nothing: the process that answers audits, or who takes over from it."""

    def checkpoint(self) -> None:
        """Move what was committed into the database file, which waits for the disk: not on the way to an answer."""
        if self.url != MEMORY:
            with suppress(sqlite3.Error), closing(sqlite3.connect(self._path, timeout=0)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def prepare(connection: Any, _: Any) -> None:
    """Set up a new connection."""
    connection.isolation_level = None  # transactions are begun by hand, below
    _refuse_newer(connection)
    _write_ahead(connection)
    for pragma in ("synchronous=NORMAL", f"wal_autocheckpoint={MOST_PAGES}"):
        connection.execute(f"PRAGMA {pragma}")


def _refuse_newer(connection: sqlite3.Connection) -> None:
    try:
        row = connection.execute("SELECT version FROM safi_version").fetchone()
    except sqlite3.OperationalError:
        return  # there are no tables yet, or none with a version
    try:
        refuse_newer(row[0] if row else 0)
    except ValueError:
        connection.close()
        raise


def _write_ahead(connection: Any) -> None:
    """Where two turn to write-ahead logging at once SQLite refuses one of them without waiting."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    # A transaction that reads and then writes would be refused where another process has written, not made to wait.
    if options.get("safi_patient", True):
        connection.exec_driver_sql("BEGIN" if options.get("safi_reading") else "BEGIN IMMEDIATE")
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        raise BusyError from None
    finally:
        driver.execute(f"PRAGMA busy_timeout={int(1000 * BUSY)}")
