"""Secret keys that belong to a store: every process that uses the store gets the same ones, also after a restart."""

from secrets import token_hex

from sqlalchemy import select

from safi_agent.store.database_errors import opening
from safi_agent.store.store import Store
from safi_agent.store.tables import secrets


@opening
def read_secret(store: Store, name: str) -> str:
    """The key of this name, 64 hexadecimal digits; created when it is first read.

    Raises:
        ValueError: the store cannot be used.
    """
    new = store.database.insert(secrets).values(name=name, secret=token_hex(32)).on_conflict_do_nothing()
    with store.database.transaction() as c:
        c.execute(new)
        secret: str = c.execute(select(secrets.c.secret).where(secrets.c.name == name)).scalar_one()
    return secret
