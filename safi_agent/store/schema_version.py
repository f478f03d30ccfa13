"""The version of a store's tables, and the way from an older one to this one.

One number in a table of the store, and one plain function for each step: these are tables that only this package
changes, on two databases that both undo a half-made step. A migration tool would add a dependency, a folder of scripts
and a table of its own, and know no more than this.
"""

from collections.abc import Callable

from sqlalchemy import Connection, inspect, select, text, update

from safi_agent.store.tables import metadata, turns, version


def _times_and_reaudits(c: Connection) -> None:
    """When a turn was answered, for the age of the backlog, and which turn's audit it repeats."""
    for statement in (
        "ALTER TABLE safi_turns ADD COLUMN since FLOAT",
        "ALTER TABLE safi_turns ADD COLUMN reaudit_of VARCHAR",
        "UPDATE safi_turns SET since = lease - 60 WHERE status != 'done'",
        "CREATE INDEX safi_turns_failed ON safi_turns (value_set) WHERE error IS NOT NULL",
        "CREATE INDEX safi_turns_again ON safi_turns (reaudit_of) WHERE reaudit_of IS NOT NULL",
    ):
        c.execute(text(statement))


def _judges(c: Connection) -> None:
    """The name of the model that judged a turn, which another process than that of the answer may choose."""
    c.execute(text("ALTER TABLE safi_turns ADD COLUMN judge VARCHAR"))


# STEPS[0] leads from version 1 to 2, and so on. A step is never changed once it was released.
STEPS: tuple[Callable[[Connection], None], ...] = (_times_and_reaudits, _judges)


def newest() -> int:
    """The version that this package writes."""
    return 1 + len(STEPS)


def refuse_newer(found: int) -> None:
    """Stop before anything is changed.

    Raises:
        ValueError: a newer package has written this store.
    """
    if found > newest():
        raise ValueError(
            f"store: expected one of version {newest()} or older, got version {found}: it needs a newer safi_agent."
        )


def version_of(c: Connection) -> int:
    """The version of what is there: 0 for nothing; tables from before there was a number are version 1."""
    there = inspect(c)
    if there.has_table(version.name):
        return c.scalar(select(version.c.version)) or 0
    return 1 if there.has_table(turns.name) else 0


def bring_up(c: Connection) -> None:
    """Make the tables, or take the steps that are missing, in the caller's transaction.

    Raises:
        ValueError: a newer package has written this store.
    """
    found = version_of(c)
    refuse_newer(found)
    if found == newest() and inspect(c).has_table(version.name):
        return
    for step in STEPS[found - 1 :] if found else ():
        step(c)
    metadata.create_all(c)
    if c.execute(update(version).values(version=newest())).rowcount == 0:
        c.execute(version.insert().values(version=newest()))
