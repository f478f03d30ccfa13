"""The backlog of open audits: depth, age, and the reasons why audits cannot proceed."""

import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, bindparam, func, select

from safi_agent.errors import OutboxError
from safi_agent.store.database import Database
from safi_agent.store.database_errors import raise_as
from safi_agent.store.leases import LEASE, is_expired, missing_value_sets, missing_values_message
from safi_agent.store.process_id import this_process
from safi_agent.store.tables import NOT_DONE, UNFINISHED, turns
from safi_agent.unicode_text import many

MAX_COUNT_AGE = 0.5  # seconds for which a count is valid while slots are free
RECOUNT_INTERVAL = 0.05  # seconds between counts while no slot is free


class Backlog(NamedTuple):
    """Open audits of a value set: turns that were answered and whose audit is neither committed nor given up."""

    depth: int  #: number of open audits
    oldest: float | None  #: seconds since the oldest of these turns was answered; None if there is none


class Slot:
    """The slot of a turn that has begun and whose audit is not counted yet."""


class _Count:
    """The last count of a value set's open audits, those added since, and the slots of turns that have begun."""

    def __init__(self) -> None:
        self.at = -MAX_COUNT_AGE
        self.depth = 0
        self.added = self.counted = 0  # added since the process started; how many of these ``depth`` contains
        # Weak: the slot of an interrupted turn is released with it.
        self.slots: weakref.WeakSet[Slot] = weakref.WeakSet()

    @property
    def about(self) -> int:
        """The estimated number of open audits."""
        return self.depth + self.added - self.counted + len(self.slots)


# The first conditions match the partial index on value sets.
_OPEN = (turns.c.value_set == bindparam("of"), UNFINISHED, NOT_DONE, turns.c.audit == 1)
_DEPTH = select(func.count()).select_from(turns).where(*_OPEN)
_AGE = select(func.count(), func.min(turns.c.since)).where(*_OPEN)


_raise_outbox_error = raise_as(OutboxError, "The store failed")


class PendingAudits:
    """Counts the open audits of each value set for backpressure: cached, and including turns under way.

    ``acquire`` reserves a slot for a turn whose audit is not yet counted.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clear()

    def clear(self) -> None:
        """Reset all counts, as after a fork."""
        self._counts: defaultdict[str, _Count] = defaultdict(_Count)
        self._lock = threading.RLock()

    def is_stale(self, value_set: str, most: int) -> bool:
        """Whether ``refresh`` should be called before ``acquire``."""
        count = self._counts[value_set]
        return time.monotonic() - count.at > (MAX_COUNT_AGE if count.about < most else RECOUNT_INTERVAL)

    @_raise_outbox_error
    def refresh(self, value_set: str) -> None:
        """Count the open audits in the database."""
        count = self._counts[value_set]
        count.at = time.monotonic()  # other threads use the previous count meanwhile
        with self.database.transaction(reading=True) as c:
            counted = count.added
            depth = c.scalar(_DEPTH, {"of": value_set}) or 0
        with self._lock:
            count.depth, count.counted = depth, counted

    def acquire(self, value_set: str, most: int | None) -> Slot | None:
        """A slot for a turn; None if ``most`` audits are open, counting the turns that hold a slot."""
        count = self._counts[value_set]
        with self._lock:
            if most is not None and count.about >= most:
                return None
            count.slots.add(slot := Slot())
            return slot

    def release(self, value_set: str, slot: Slot) -> None:
        """Release the slot of a turn that has ended."""
        self._counts[value_set].slots.discard(slot)

    def add(self, value_set: str) -> None:
        """Count one more open audit."""
        with self._lock:
            self._counts[value_set].added += 1

    def estimate(self, value_set: str) -> int:
        """The estimated number of open audits."""
        return self._counts[value_set].about


@_raise_outbox_error
def read_backlog(database: Database, value_set: str) -> Backlog:
    """The current depth and age of the backlog of a value set, by its name."""
    with database.transaction(reading=True) as c:
        depth, since = c.execute(_AGE, {"of": value_set}).one()
    return Backlog(depth, None if since is None else max(0.0, time.time() - since))


def blocking_reasons(database: Database, value_set: str) -> list[str]:
    """Why turns cannot proceed, one sentence for each cause; empty if there is no known cause.

    A cause is a value set that is missing in the store, a turn of another process at the head of a memory key of this
    value set, or a queue from which no worker takes jobs.
    """
    with database.transaction(reading=True) as c:
        untaken = database.count_untaken(c, value_set)
        no_worker = f"{many(untaken, 'job')} of {value_set!r} in the queue, and no worker takes them. Start a worker."
        return [*_missing_values(c), *_other_processes(c, value_set), *([no_worker] if untaken else [])]


def _missing_values(c: Connection) -> list[str]:
    ids = c.scalars(select(turns.c.values_id).distinct().where(NOT_DONE)).all()
    sentences = []
    for values_id in missing_value_sets(c, ids):
        waiting = and_(NOT_DONE, turns.c.values_id == values_id)
        keys = select(turns.c.key).distinct().where(waiting)
        behind = and_(NOT_DONE, turns.c.key.in_(keys), turns.c.values_id != values_id)
        own, names = c.execute(select(func.count(), func.min(turns.c.value_set)).where(waiting)).one()
        others = c.scalar(select(func.count()).select_from(turns).where(behind)) or 0
        also = f", and {many(others, 'turn')} of the same memory keys behind them" if others else ""
        cure = missing_values_message(values_id)
        sentences.append(f"{many(own, 'turn')} of the value set {names!r} cannot be audited{also}: {cure}")
    return sentences


def _other_processes(c: Connection, value_set: str) -> list[str]:
    mine = select(turns.c.key).distinct().where(NOT_DONE, UNFINISHED, turns.c.value_set == value_set)
    heads = (
        select(turns.c.key, func.min(turns.c.turn).label("turn")).where(NOT_DONE, turns.c.key.in_(mine)).group_by("key")
    ).subquery()
    at = and_(turns.c.key == heads.c.key, turns.c.turn == heads.c.turn)
    rows: Sequence[Any] = c.execute(
        select(turns.c.owner, func.count().label("keys"), func.max(turns.c.lease).label("lease"))
        .join(heads, at)
        .where(turns.c.owner != this_process())
        .group_by(turns.c.owner)
    ).all()
    now = time.time()
    return [
        f"{many(row.keys, 'memory key')} of {value_set!r} on turns of the process {row.owner.rpartition(':')[0]}: "
        f"they are taken over when it has ended, or has been silent for {LEASE:g} s."
        for row in rows
        if not is_expired(row.owner, row.lease, now)
    ]
