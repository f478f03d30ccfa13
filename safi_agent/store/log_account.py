"""The store's account of a log: which turns are in it, and contradictions between the store's rows."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, Connection, and_, bindparam, case, func, or_, select

from safi_agent.store import Store
from safi_agent.store.rows import Anchor
from safi_agent.store.tables import NOT_LOGGED, PLACED, anchors, memory, turns

MOST_NAMED = 5  # memory keys in one sentence
MOST_PLACES = 2**63
# Exceptions that an edited row may raise: SQLite accepts text in a numeric column.
WRONG = (TypeError, ValueError, LookupError, OverflowError, RecursionError)

_IN_LOG = turns.c.log == bindparam("of")
_WRITTEN = select(turns.c.place).where(_IN_LOG, turns.c.logged == 1)
_WAITING = select(turns.c.place).where(_IN_LOG, NOT_LOGGED, PLACED)
_HALF_DONE = or_(and_(turns.c.status == "done", turns.c.place.is_(None)), and_(turns.c.status != "done", PLACED))
_PLACES = select(
    func.coalesce(func.max(turns.c.place), 0),
    func.count(turns.c.place.distinct()),
    func.coalesce(func.sum(case((_HALF_DONE, 1), else_=0)), 0),
)
_COUNTED = (
    select(turns.c.key, func.count().label("rows"), func.max(turns.c.turn).label("last")).group_by(turns.c.key)
).subquery()
_LANES = (
    select(memory.c.key)
    .join(_COUNTED, memory.c.key == _COUNTED.c.key, isouter=True)
    .where(
        or_(func.coalesce(_COUNTED.c.rows, 0) != memory.c.turns, func.coalesce(_COUNTED.c.last, 0) != memory.c.turns)
    )
)
_WITHOUT_MEMORY = select(turns.c.key).where(turns.c.key.not_in(select(memory.c.key))).distinct()
_LAST = select(func.max(turns.c.turn)).where(turns.c.key == memory.c.key, PLACED).correlate(memory).scalar_subquery()
_MEMORIES = select(memory.c.key, memory.c.mu, memory.c.mu_turn, turns.c.record).join(
    turns, and_(turns.c.key == memory.c.key, turns.c.turn == _LAST)
)
_THOSE: BindParameter[Any] = bindparam("those", expanding=True)
_ROWS = select(turns).where(turns.c.id.in_(_THOSE))
_AT = (
    select(turns.c.key, turns.c.turn, turns.c.id)
    .where(_IN_LOG, turns.c.logged == 1, turns.c.place.in_(_THOSE))
    .order_by(turns.c.place)
)
_ANCHORS = select(anchors.c.log, anchors.c.size, anchors.c.lines, anchors.c.mac, anchors.c.key).where(
    anchors.c.log.in_(_THOSE)
)


class LogAccount(NamedTuple):
    """The store's account of a log, read in one transaction.

    ``written`` contains the commit positions of the turns in the log, ``waiting`` those of committed turns that are not
    in it yet, and ``wrong`` a description of each contradiction between the store's rows.
    """

    log: str
    anchor: Anchor | None
    written: "array[int]"
    waiting: set[int]
    wrong: tuple[str, ...]


def read_log_account(store: Store, log: str) -> LogAccount:
    """Read the store's account of a log."""
    with store.database.transaction(reading=True) as c:
        if c.dialect.name == "postgresql":  # a transaction of SQLite is a snapshot in any case
            c.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        written = list(c.scalars(_WRITTEN, {"of": log}))
        places = array("q", sorted(place for place in written if _is_place(place)))
        waiting = {place for place in c.scalars(_WAITING, {"of": log}) if _is_place(place)}
        wrong = _contradictions(c)
        if len(places) < len(written):
            wrong.append(f"{len(written) - len(places):,} turns are in the log and were never committed")
        return LogAccount(log, _anchors(c, [log]).get(log), places, waiting, tuple(wrong))


def _is_place(place: object) -> bool:
    return isinstance(place, int) and 0 < place < MOST_PLACES


def _contradictions(c: Connection) -> list[str]:
    try:
        return [*_of_places(c), *_of_memories(c)]
    except WRONG as error:
        return [f"rows contain invalid values ({type(error).__name__})"]


def _of_places(c: Connection) -> Iterator[str]:
    last, places, half_done = c.execute(_PLACES).one()
    if places != last:
        yield f"{last - places:,} turns are missing from the order of commits, which goes up to {last:,}"
    if half_done:
        yield f"{half_done:,} turns are committed without a place in the order of commits, or have one uncommitted"


def _of_memories(c: Connection) -> Iterator[str]:
    if keys := [*c.scalars(_LANES), *c.scalars(_WITHOUT_MEMORY)]:
        yield f"the number of turns of {_named(keys)} differs from their counter"
    if keys := [row.key for row in c.execute(_MEMORIES) if _differs(row)]:
        yield f"μ of {_named(keys)} differs from μ in the last record of the key"


def _named(keys: Sequence[str]) -> str:
    return f"{len(keys):,} memory keys ({', '.join(map(repr, keys[:MOST_NAMED]))}{', …' * (len(keys) > MOST_NAMED)})"


def _differs(row: Any) -> bool:
    """Whether μ in the memory differs from μ in the last record of the key."""
    try:
        record = json.loads(row.record)
        return "mu" in record and (record["mu"], record["muTurn"]) != (json.loads(row.mu), row.mu_turn)
    except WRONG:
        return True


def read_rows(store: Store, turn_ids: Sequence[str]) -> dict[str, Any]:
    """The rows of these turns by id, as far as they exist."""
    with store.database.transaction(reading=True) as c:
        return {row.id: row for row in c.execute(_ROWS, {"those": list(turn_ids)})}


def read_turns_at(store: Store, log: str, places: Sequence[int]) -> list[Any]:
    """Key, turn and id of the turns in a log at these places."""
    with store.database.transaction(reading=True) as c:
        return list(c.execute(_AT, {"of": log, "those": list(places)}))


def read_anchors(store: Store, logs: Iterable[str]) -> dict[str, Anchor]:
    """The anchors of these logs, as far as there are any."""
    with store.database.transaction(reading=True) as c:
        return _anchors(c, logs)


def _anchors(c: Connection, logs: Iterable[str]) -> dict[str, Anchor]:
    return {log: Anchor(*anchor) for log, *anchor in c.execute(_ANCHORS, {"those": list(logs)})}
