"""Whose work a turn is: a process renews its lease on it; from one that is dead or silent it is taken over."""

import time

from sqlalchemy import and_, func, select, update

from safi_agent.store.access import Access
from safi_agent.store.owner import is_dead, me
from safi_agent.store.rows import Job
from safi_agent.store.tables import NOT_SETTLED, UNFINISHED, turns

LEASE = 60.0


class Leases(Access):
    """Takes over what others left."""

    def adopt(self, value_set: str) -> list[Job]:
        """Take over the unfinished turns of processes that are dead or silent for longer than their lease."""
        now = time.time()
        unfinished = and_(turns.c.value_set == value_set, UNFINISHED)
        with self._transaction() as c:
            grouped = select(turns.c.owner, func.min(turns.c.lease)).where(unfinished).group_by(turns.c.owner)
            owners = c.execute(grouped).all()
            gone = [owner for owner, lease in owners if owner != me() and (lease < now or is_dead(owner))]
            if not gone:
                return []
            theirs = and_(unfinished, turns.c.owner.in_(gone))
            columns = (turns.c.key, turns.c.turn, turns.c.id, turns.c.log, turns.c.audit, turns.c.attempts)
            mine = update(turns).where(theirs).values(owner=me(), lease=now + LEASE).returning(*columns)
            jobs = c.execute(mine).all()  # in one statement: of two who take over at once each turn goes to one
        return [Job(job.id, job.key, job.log, bool(job.audit), job.attempts) for job in sorted(jobs)]

    def mine_open(self, value_set: str) -> tuple[int, int]:
        """How many turns that this process has answered, or taken over, are not done; how many of them are audited."""
        mine = (turns.c.value_set == value_set, turns.c.owner == me(), NOT_SETTLED)
        with self._transaction(reading=True) as c:
            row = c.execute(select(func.count(), func.coalesce(func.sum(turns.c.audit), 0)).where(*mine)).one()
        return row[0], row[1]

    def renew(self) -> None:
        """Say that this process is still at work on what is its own."""
        with self._transaction() as c:
            mine = and_(turns.c.owner == me(), UNFINISHED)
            c.execute(update(turns).where(mine).values(lease=time.time() + LEASE))
