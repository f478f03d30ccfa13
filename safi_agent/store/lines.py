"""The lines that the log still has to get, and how long it was when it got the last."""

from collections.abc import Sequence

from sqlalchemy import and_, select, update

from safi_agent.store.access import Access
from safi_agent.store.tables import NOT_LOGGED, PLACED, logs, turns


class Lines(Access):
    """Knows what was committed and is not in its log."""

    def unlogged(self, log: str) -> tuple[int | None, list[tuple[str, str]]]:
        """The log's size when it was last written (None: never), and ids and records that are not yet in it."""
        with self._transaction(reading=True) as c:
            size = c.scalar(select(logs.c.size).where(logs.c.log == log))
            waiting = and_(turns.c.log == log, NOT_LOGGED, PLACED)
            rows = c.execute(select(turns.c.id, turns.c.record).where(waiting).order_by(turns.c.place)).all()
        return size, [(row.id, row.record) for row in rows]

    def logged(self, log: str, turn_ids: Sequence[str], size: int) -> None:
        """These turns are in the log, which has this size now."""
        with self._transaction() as c:
            c.execute(update(turns).where(turns.c.id.in_(turn_ids)).values(logged=1))
            kept = self.database.insert(logs).values(log=log, size=size)
            c.execute(kept.on_conflict_do_update(index_elements=["log"], set_={"size": size}))
