"""A store's way to its database."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from sqlalchemy import Connection, Engine, Table

Task = Literal["safi.judge", "safi.settle"]


class Database(Protocol):
    """What a store needs of a database; each has a file of its own."""

    engine: Engine

    @property
    def insert(self) -> Callable[[Table], Any]:
        """The dialect's ``INSERT``, which knows ``ON CONFLICT``."""

    def transaction(self, *, reading: bool = False, patient: bool = True) -> AbstractContextManager[Connection]:
        """A transaction; it is undone if what is done in it raises.

        Raises:
            BusyError: it would have to be waited for, and ``patient`` is False.
        """

    def enqueue(self, c: Connection, task: Task, value_set: str, key: str, turn_id: str) -> None:
        """Have some process do this, from the moment this transaction is committed."""

    def checkpoint(self) -> None:
        """Move what was committed to where it stays, if that is not done by itself."""

    def after_fork(self) -> None:
        """In the child: a connection of its own."""


class Access:
    """Every method of a store is one transaction on its database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._connected()

    def _connected(self) -> None:
        """Begin anew: nothing that was read before counts."""

    def _transaction(self, *, reading: bool = False, patient: bool = True) -> AbstractContextManager[Connection]:
        return self.database.transaction(reading=reading, patient=patient)

    def checkpoint(self) -> None:
        """Move what was committed to where it stays, if that is not done by itself."""
        self.database.checkpoint()

    def after_fork(self) -> None:
        """In the child: a connection of its own."""
        self.database.after_fork()
        self._connected()
