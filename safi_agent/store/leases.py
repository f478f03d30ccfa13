"""Leases: a process renews its leases on turns; expired leases, and those of dead processes, are taken over.

A chain takes over the turns of its own value set, by name. It takes turns of another set, for example after a value set
was renamed, only if no live process has a chain or turns of that set. Such a turn is audited by the stored values under
which it was approved, and written to its own log; from then on it belongs to the chain that has taken it over.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from safi_agent.store.database import Database, Task
from safi_agent.store.process_id import is_dead, this_process
from safi_agent.store.rows import Job
from safi_agent.store.tables import ERASURES, NOT_SETTLED, UNFINISHED, chains, turns, value_sets

log = logging.getLogger("safi_agent")
LEASE = 60.0
SUBMIT_GRACE = 5.0  # seconds after which a stored turn must have been submitted for audit

_BY_OWNER = (
    select(turns.c.value_set, turns.c.owner, func.min(turns.c.lease).label("lease"))
    .where(UNFINISHED, turns.c.key != ERASURES)
    .group_by(turns.c.value_set, turns.c.owner)
)
_JOB = (turns.c.key, turns.c.turn, turns.c.id, turns.c.log, turns.c.audit, turns.c.attempts, turns.c.status)


class Leases:
    """Renews the leases of this process, and takes over the turns of processes that have ended."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clear()

    def clear(self) -> None:
        """Reset all state of this process, as after a fork."""
        self._announced: dict[str, float] = {}  # when this process last announced a chain, by value set
        self._reported: set[str] = set()
        self.under_way: set[str] = set()  # ids of turns that are being audited in this process

    def take_over(self, value_set: str, submitted: Collection[str] | None = None) -> list[Job]:
        """Take over the unfinished turns of processes that are dead or whose lease has expired.

        Args:
            value_set: the name of the caller's set.
            submitted: ids of all turns that are under way in this process (``under_way``). Other turns of this process
                are taken over too, because an interrupt came between their answer and their audit. With None they are
                not taken over.
        """
        self._announce(value_set)
        with self.database.transaction(reading=True) as c:
            theirs = self._expired_owners(c, value_set)
            forgotten = self._unsubmitted(c, value_set, submitted)
        if not theirs and not forgotten:
            return []
        with self.database.transaction() as c:
            jobs = [job for name, owners in theirs.items() for job in self._take_turns(c, value_set, name, owners)]
            jobs += self._take_unsubmitted(c, forgotten)
        return [Job(job.id, job.key, job.log, bool(job.audit), job.attempts) for job in sorted(jobs)]

    def _announce(self, value_set: str) -> None:
        """Periodically record that this process has a chain of this value set."""
        if time.monotonic() - self._announced.get(value_set, -LEASE) < LEASE / 4:
            return
        now = time.time()
        row = {"value_set": value_set, "owner": this_process(), "lease": now + LEASE}
        insertion = self.database.insert(chains).values(row)
        with self.database.transaction() as c:
            c.execute(
                insertion.on_conflict_do_update(index_elements=["value_set", "owner"], set_={"lease": now + LEASE})
            )
            c.execute(delete(chains).where(chains.c.lease < now - LEASE))
        self._announced[value_set] = time.monotonic()

    def _expired_owners(self, c: Connection, value_set: str) -> dict[str, list[str]]:
        """The expired owners whose turns this chain may take over, by value set."""
        now = time.time()
        gone: dict[str, list[str]] = defaultdict(list)
        alive: set[str] = set()
        for row in c.execute(_BY_OWNER):
            if is_expired(row.owner, row.lease, now):
                gone[row.value_set].append(row.owner)
            else:
                alive.add(row.value_set)
        for name in gone.keys() - alive - {value_set}:
            owners = c.execute(select(chains.c.owner, chains.c.lease).where(chains.c.value_set == name))
            if any(row.lease >= now and not is_dead(row.owner) for row in owners):
                alive.add(name)
        return {name: owners for name, owners in gone.items() if name == value_set or name not in alive}

    def _unsubmitted(self, c: Connection, value_set: str, submitted: Collection[str] | None) -> list[str]:
        if submitted is None:
            return []
        mine = (turns.c.value_set == value_set, turns.c.owner == this_process(), UNFINISHED, NOT_SETTLED)
        old = turns.c.lease < time.time() + LEASE - SUBMIT_GRACE
        return [turn_id for turn_id in c.scalars(select(turns.c.id).where(*mine, old)) if turn_id not in submitted]

    def _take_turns(self, c: Connection, value_set: str, name: str, owners: Sequence[str]) -> list[Any]:
        """Take over the turns of a value set in one UPDATE, so that each turn goes to one process only."""
        theirs = and_(turns.c.value_set == name, UNFINISHED, turns.c.owner.in_(owners))
        ids = c.scalars(select(turns.c.values_id).distinct().where(theirs, turns.c.status != "done")).all()
        lost = missing_value_sets(c, ids)
        self._report_missing(name, lost)
        able: ColumnElement[bool] = or_(turns.c.status == "done", turns.c.values_id.not_in(lost))
        mine = (
            update(turns)
            .where(theirs, able)
            .values(owner=this_process(), lease=time.time() + LEASE, value_set=value_set)
        )
        jobs = c.execute(mine.returning(*_JOB)).all()
        if name != value_set and jobs:
            log.warning(
                "%d turns of the value set %r, which no process serves, are audited under %r.",
                len(jobs),
                name,
                value_set,
            )
            self._requeue(c, value_set, name, jobs)
        return list(jobs)

    def _requeue(self, c: Connection, value_set: str, name: str, jobs: Sequence[Any]) -> None:
        self.database.withdraw(c, name, [job.id for job in jobs])
        for job in sorted(jobs):
            task: Task = "safi.judge" if job.status == "pending" else "safi.settle"
            self.database.enqueue(c, task, value_set, job.key, job.id)

    def _take_unsubmitted(self, c: Connection, turn_ids: Sequence[str]) -> list[Any]:
        if not turn_ids:
            return []
        mine = update(turns).where(turns.c.id.in_(turn_ids), NOT_SETTLED).values(lease=time.time() + LEASE)
        return list(c.execute(mine.returning(*_JOB)).all())

    def _report_missing(self, name: str, lost: Iterable[str]) -> None:
        for values_id in lost:
            if values_id not in self._reported:
                self._reported.add(values_id)
                log.warning("Turns of the value set %r wait: %s", name, missing_values_message(values_id))

    def count_own(self, value_set: str) -> tuple[int, int]:
        """The numbers of unfinished turns and unfinished audits that this process owns."""
        mine = (turns.c.value_set == value_set, turns.c.owner == this_process(), NOT_SETTLED)
        with self.database.transaction(reading=True) as c:
            row = c.execute(select(func.count(), func.coalesce(func.sum(turns.c.audit), 0)).where(*mine)).one()
        return row[0], row[1]

    def renew(self) -> None:
        """Renew the leases on the turns that this process owns."""
        with self.database.transaction() as c:
            mine = and_(turns.c.owner == this_process(), UNFINISHED)
            c.execute(update(turns).where(mine).values(lease=time.time() + LEASE))


def is_expired(owner: str, lease: float, now: float) -> bool:
    """Whether the owner's turns may be taken over."""
    return owner != this_process() and (lease < now or is_dead(owner))


def missing_value_sets(c: Connection, values_ids: Collection[str]) -> list[str]:
    """The ids of value sets that are missing in the store, or whose content was changed."""
    query = select(value_sets.c.id, value_sets.c.body).where(value_sets.c.id.in_(values_ids))
    bodies = {row.id: row.body for row in c.execute(query)} if values_ids else {}
    return [i for i in values_ids if i not in bodies or sha256(bodies[i].encode()).hexdigest() != i]


def missing_values_message(values_id: str) -> str:
    """The error and the remedy for a missing value set."""
    return (
        f"the store does not have the values under which they were approved (fingerprint {values_id[:12]}…). Create a "
        "chain with that value set on this store once to restore them."
    )
