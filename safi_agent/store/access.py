"""A store's way to its database."""

from contextlib import AbstractContextManager

from sqlalchemy import Connection

from safi_agent.store.sqlite import Sqlite


class Access:
    """Every method of a store is one transaction on its database."""

    def __init__(self, database: Sqlite) -> None:
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
