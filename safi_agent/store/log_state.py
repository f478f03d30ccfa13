"""The store's side of the log: records that are not yet written, and the anchor of the last write."""

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, func, select, update

from safi_agent.store.rows import Anchor
from safi_agent.store.store import Store
from safi_agent.store.tables import NOT_LOGGED, PLACED, anchors, turns

# Statements of every flush, built once.
_WAITING = (
    select(turns.c.id, turns.c.record).where(turns.c.log == bindparam("of"), NOT_LOGGED, PLACED).order_by(turns.c.place)
)
_ANCHOR = select(anchors.c.size, anchors.c.lines, anchors.c.mac, anchors.c.key).where(anchors.c.log == bindparam("of"))
_LOGGED = update(turns).where(turns.c.id.in_(bindparam("those", expanding=True))).values(logged=1)


def read_anchor(store: Store, log: str) -> Anchor | None:
    """The anchor of a log; None if it was never written."""
    with store.database.transaction(reading=True) as c:
        return _anchor(c, log)


def read_unlogged(store: Store, log: str) -> tuple[Anchor | None, list[tuple[str, str]]]:
    """The anchor of a log, and the ids and records that are not written to it yet."""
    with store.database.transaction(reading=True) as c:
        rows = c.execute(_WAITING, {"of": log}).all()
        return _anchor(c, log), [(row.id, row.record) for row in rows]


def count_unlogged(store: Store, value_set: str) -> dict[str, int]:
    """The number of committed turns of a value set that are not written yet, by log."""
    waiting = (turns.c.value_set == value_set, NOT_LOGGED, PLACED)
    with store.database.transaction(reading=True) as c:
        rows = c.execute(select(turns.c.log, func.count()).where(*waiting).group_by(turns.c.log)).all()
    return {log: count for log, count in rows}


def mark_logged(store: Store, log: str, turn_ids: Sequence[str], anchor: Anchor) -> None:
    """Mark turns as written and store the new anchor, in one transaction."""
    with store.database.transaction() as c:
        c.execute(_LOGGED, {"those": list(turn_ids)})
        insertion = store.database.insert(anchors).values(log=log, **anchor._asdict())
        c.execute(insertion.on_conflict_do_update(index_elements=["log"], set_=anchor._asdict()))


def _anchor(c: Connection, log: str) -> Anchor | None:
    row = c.execute(_ANCHOR, {"of": log}).first()
    return None if row is None else Anchor(*row)
