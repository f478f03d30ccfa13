"""The interface between a store and its database, and a database engine that survives a fork."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from sqlalchemy import Connection, Engine, Table
from typing_extensions import override

from safi_agent.fork_safety import ForkHandler, Stage, register

Task = Literal["safi.judge", "safi.settle"]


class Database(Protocol):
    """The interface of a database backend."""

    engine: Engine

    @property
    def insert(self) -> Callable[[Table], Any]:
        """The dialect's ``INSERT``, which supports ``ON CONFLICT``."""

    def transaction(self, *, reading: bool = False) -> AbstractContextManager[Connection]:
        """A transaction, which is rolled back if its block raises.

        Waiting is limited by the timeout budget of the current turn, or by a new one.

        Raises:
            SQLAlchemyError: the database failed, or was waited for in vain.
        """

    def enqueue(self, c: Connection, task: Task, value_set: str, key: str, turn_id: str) -> None:
        """Enqueue a job that becomes visible when this transaction is committed."""

    def lock_commit_order(self, c: Connection) -> None:
        """Lock the commit order: no other transaction assigns commit positions until this one has ended."""

    def checkpoint(self) -> None:
        """Run a checkpoint of the write-ahead log, if the backend needs it."""

    def purge(self) -> None:
        """Remove from the database's files what deleted and changed rows contained before.

        Raises:
            SQLAlchemyError: the database failed, or was waited for in vain.
        """

    def withdraw(self, c: Connection, value_set: str, turn_ids: Sequence[str]) -> None:
        """Delete the jobs of these turns of a value set."""

    def withdraw_settled(self, c: Connection, turn_ids: Sequence[str]) -> None:
        """Delete the waiting jobs of these turns, which are settled."""

    def count_untaken(self, c: Connection, value_set: str) -> int:
        """The number of due jobs of a value set that no worker takes."""


_left_behind: list[Engine] = []  # engines of the parent process: a child must neither use nor close their connections


class ForkSafeEngine(ForkHandler):
    """Holds an engine that is disposed with it, and replaced in a forked child."""

    engine: Engine

    def __init__(self) -> None:
        self._open_engine()
        register(self, Stage.STORE)

    def _create_engine(self) -> Engine:
        """Create an engine, which connects when it is first used."""
        raise NotImplementedError

    def _open_engine(self) -> None:
        self.engine = self._create_engine()
        self._finalizer = weakref.finalize(self, self.engine.dispose)

    @override
    def after_fork(self) -> None:
        """In the child: open own connections."""
        _left_behind.append(self.engine)
        self._finalizer.detach()
        self._open_engine()
