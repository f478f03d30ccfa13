"""Keys that belong to a store: every process that uses it has the same, also after a restart."""

from contextlib import suppress
from secrets import token_hex

from sqlalchemy import inspect, select
from sqlalchemy.exc import SQLAlchemyError

from safi_agent.store.database import Access
from safi_agent.store.database_errors import opening
from safi_agent.store.tables import secrets


class Secrets(Access):
    """Makes a key when it is first asked for."""

    @opening
    def secret(self, name: str) -> str:
        """The key of this name, 64 hexadecimal digits.

        Raises:
            ValueError: the store cannot be used.
        """
        self._make_table()
        new = self.database.insert(secrets).values(name=name, secret=token_hex(32)).on_conflict_do_nothing()
        with self._transaction() as c:
            c.execute(new)
            found: str = c.execute(select(secrets.c.secret).where(secrets.c.name == name)).scalar_one()
        return found

    def _make_table(self) -> None:
        """A store that an older package made has no table for them."""
        with self._transaction(reading=True) as c:
            there = inspect(c).has_table(secrets.name)
        if not there:
            with suppress(SQLAlchemyError), self._transaction() as c:  # another process may be making it
                secrets.create(c, checkfirst=True)
