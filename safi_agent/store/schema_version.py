"""The version of a store's schema: one number in a table of its own. A store of another version is refused."""

from sqlalchemy import Connection, inspect, select, update

from safi_agent.store.tables import metadata, turns, version

VERSION = 5


def refuse_other_versions(existing: int) -> None:
    """Raise before anything in the store is changed.

    Args:
        existing: the version of the store; 0 for an empty one.

    Raises:
        ValueError: the store was written by another version of this package.
    """
    if existing not in (0, VERSION):
        raise ValueError(
            f"store: expected one of version {VERSION}, got version {existing}: it was written by another version of "
            "safi_agent. Use that version, or a new store."
        )


def version_of(c: Connection) -> int:
    """The version of the existing tables: 0 if there are none; tables without a version number count as version 1."""
    tables = inspect(c)
    if tables.has_table(version.name):
        return c.scalar(select(version.c.version)) or 0
    return 1 if tables.has_table(turns.name) else 0


def create_tables(c: Connection) -> None:
    """Create the tables in the caller's transaction, unless they exist.

    Raises:
        ValueError: the store was written by another version of this package.
    """
    existing = version_of(c)
    refuse_other_versions(existing)
    if existing == VERSION:
        return
    metadata.create_all(c)
    if c.execute(update(version).values(version=VERSION)).rowcount == 0:
        c.execute(version.insert().values(version=VERSION))
