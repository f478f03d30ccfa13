"""The store's side of an erasure: contents are removed from rows, and a record of it is added for the log.

The record of an erasure is a row like that of a turn, with an empty memory key and a place in the order of commits: it
is written to the log as every record is, once, and counted and signed there. It is ``settled`` once the contents are
also removed from the log and from the files of the store.
"""

import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import BindParameter, Connection, and_, bindparam, func, or_, select, update

from safi_agent.contents import erase_body, erase_ledger, erase_record, erased_turns
from safi_agent.errors import UnknownTurnError
from safi_agent.store.store import Store
from safi_agent.store.tables import ERASURES, NOT_ERASED, anchors, memory, turns

AT_ONCE = 200  # turns in a transaction, and ids in a record
ERROR = "erased before its audit"

_THOSE: BindParameter[Any] = bindparam("those", expanding=True)
_TURN = turns.c.key != ERASURES
_FIRST = func.coalesce(turns.c.reaudit_of, turns.c.id)  # a repeated audit has the contents of the first
_KEYS = select(turns.c.key).where(turns.c.id.in_(_THOSE)).distinct()
_LOCK_KEYS = select(memory.c.key).where(memory.c.key.in_(_THOSE)).order_by(memory.c.key).with_for_update()
_FIRSTS = select(_FIRST).where(turns.c.id.in_(_THOSE)).distinct()
_FAMILY = or_(turns.c.id.in_(_THOSE), turns.c.reaudit_of.in_(_THOSE))
_ROWS = select(turns).where(_FAMILY, _TURN, NOT_ERASED).order_by(turns.c.id).with_for_update()
_ERASE = (
    update(turns)
    .where(turns.c.id == bindparam("of"))
    .values(
        erased=1,
        body=bindparam("new_body"),
        ledger=bindparam("new_ledger"),
        record=bindparam("new_record"),
        status=bindparam("new_status"),
        error=bindparam("new_error"),
    )
)
_LAST = select(func.coalesce(func.max(turns.c.place), 0))
_ERASED = select(turns.c.id).where(turns.c.id.in_(_THOSE), turns.c.erased == 1)


def find_turns(
    store: Store, turn_ids: Collection[str] | None, key: str | None, before: float | None
) -> tuple[list[str], int]:
    """The ids of turns whose contents are not erased, with all repetitions of their audits; and how many are erased.

    Args:
        store: the store.
        turn_ids: only these turns.
        key: only turns of this memory key.
        before: only turns that were answered before this time, in seconds since the epoch.

    Raises:
        UnknownTurnError: the store does not have one of ``turn_ids``.
    """
    conditions = [_TURN]
    if key is not None:
        conditions.append(turns.c.key == key)
    if before is not None:
        conditions.append(turns.c.since < before)
    left: dict[str, None] = {}  # in order, and each once
    earlier = 0
    with store.database.transaction(reading=True) as c:
        for ids in [None] if turn_ids is None else batches(turn_ids):
            if ids is not None:
                _refuse_unknown(c, ids)
            chosen = and_(*conditions, *([] if ids is None else [turns.c.id.in_(ids)]))
            family = (_TURN, _FIRST.in_(select(_FIRST).where(chosen)))
            found = select(turns.c.id).where(*family, NOT_ERASED).order_by(turns.c.key, turns.c.turn)
            left |= dict.fromkeys(c.scalars(found))
            earlier += c.scalar(select(func.count()).select_from(turns).where(*family, turns.c.erased == 1)) or 0
    return list(left), earlier


def _refuse_unknown(c: Connection, turn_ids: Sequence[str]) -> None:
    known = set(c.scalars(select(turns.c.id).where(_TURN, turns.c.id.in_(turn_ids))))
    if unknown := [turn_id for turn_id in turn_ids if turn_id not in known]:
        raise UnknownTurnError(unknown[0])


def erase_turns(store: Store, turn_ids: Iterable[str], timestamp: str) -> int:
    """Remove the contents of these turns from the rows of the store, and add a record of it for each log.

    Repetitions of their audits are erased with them. A turn that is not audited yet gets a failed audit. ``AT_ONCE``
    turns are erased in a transaction.

    Args:
        store: the store.
        turn_ids: the ids of the turns; those that are erased already are skipped.
        timestamp: the time of the records.

    Returns:
        The number of turns whose contents were removed.
    """
    count = 0
    for ids in batches(turn_ids):
        with store.database.transaction() as c:
            # Locks in the order in which a commit takes them.
            c.execute(_LOCK_KEYS, {"those": sorted(c.scalars(_KEYS, {"those": ids}))}).all()
            store.database.lock_commit_order(c)
            # With repetitions of audits that were added since the turns were chosen; none is added any more.
            firsts = list(c.scalars(_FIRSTS, {"those": ids}))
            if rows := c.execute(_ROWS, {"those": firsts}).all():
                c.execute(_ERASE, [_erased(row) for row in rows])
                _add_records(store, c, rows, timestamp)
            for row in rows:
                if row.status == "pending":
                    store.database.enqueue(c, "safi.settle", row.value_set, row.key, row.id)
        count += len(rows)
    return count


def _add_records(store: Store, c: Connection, rows: Iterable[Any], timestamp: str) -> None:
    by_log: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_log[row.log].append(row.id)
    last: int = c.scalar(_LAST) or 0
    for place, (log, ids) in enumerate(by_log.items(), last + 1):
        _add_record(store, c, log, ids, place, timestamp)


def _add_record(store: Store, c: Connection, log: str, ids: Sequence[str], place: int, timestamp: str) -> None:
    own = str(uuid4())
    record = {"timestamp": timestamp, "erasedTurns": list(ids), "turnId": own}
    row = {"id": own, "key": ERASURES, "turn": store.next_number(c, ERASURES), "log": log, "place": place}
    nothing = {
        "value_set": "",
        "values_id": "",
        "audit": 0,
        "attempts": 0,
        "body": '{"erased": true}',
        "owner": "",
        "erased": 0,
    }
    state = {"status": "done", "logged": 0 if log else 1, "settled": 0, "lease": 0.0, "since": time.time()}
    c.execute(turns.insert(), {**row, **nothing, **state, "record": json.dumps(record)})


def _erased(row: Any) -> dict[str, Any]:
    pending = row.status == "pending"
    return {
        "of": row.id,
        "new_body": json.dumps(erase_body(json.loads(row.body)), allow_nan=False),
        "new_ledger": row.ledger and json.dumps(erase_ledger(json.loads(row.ledger)), allow_nan=False),
        "new_record": row.record and erase_record(row.record),
        "new_status": "judged" if pending else row.status,
        "new_error": ERROR if pending else row.error,
    }


def find_erased(store: Store, turn_ids: Sequence[str]) -> set[str]:
    """Those of these turns whose contents were removed from the store."""
    with store.database.transaction(reading=True) as c:
        return set(c.scalars(_ERASED, {"those": list(turn_ids)}))


class Erasure(NamedTuple):
    """The record of an erasure that is not completed: its id, its log, and whether it is written there."""

    id: str
    log: str
    logged: bool


def open_erasures(store: Store) -> list[Erasure]:
    """The erasures that are not completed."""
    query = select(turns.c.id, turns.c.log, turns.c.logged).where(turns.c.key == ERASURES, turns.c.settled == 0)
    with store.database.transaction(reading=True) as c:
        return [Erasure(row.id, row.log, bool(row.logged)) for row in c.execute(query.order_by(turns.c.place))]


def expected_lines(store: Store, log: str) -> set[str]:
    """The turns of erasures that are not completed whose lines were written to this log."""
    query = select(turns.c.record).where(turns.c.key == ERASURES, turns.c.settled == 0, turns.c.log == log)
    written = select(turns.c.id).where(turns.c.id.in_(_THOSE), turns.c.log == log, turns.c.logged == 1)
    found: set[str] = set()
    with store.database.transaction(reading=True) as c:
        for record in c.scalars(query).all():
            found |= set(c.scalars(written, {"those": erased_turns(record)}))
    return found


def recorded_turns(store: Store, log: str) -> set[str]:
    """The turns whose erasure a record for this log names."""
    query = select(turns.c.record).where(turns.c.key == ERASURES, turns.c.log == log)
    with store.database.transaction(reading=True) as c:
        return {turn_id for record in c.scalars(query) for turn_id in erased_turns(record)}


def add_record(store: Store, log: str, turn_ids: Sequence[str], timestamp: str) -> None:
    """Add a record of the erasure of these turns for a log that has copies of their lines."""
    with store.database.transaction() as c:
        store.database.lock_commit_order(c)
        _add_record(store, c, log, turn_ids, (c.scalar(_LAST) or 0) + 1, timestamp)


def written_logs(store: Store) -> list[str]:
    """The logs that this store has written."""
    with store.database.transaction(reading=True) as c:
        return list(c.scalars(select(anchors.c.log).order_by(anchors.c.log)))


def batches(turn_ids: Iterable[str]) -> Iterator[list[str]]:
    """These ids, each once, at most ``AT_ONCE`` at a time."""
    rest = iter(dict.fromkeys(turn_ids))
    while batch := list(islice(rest, AT_ONCE)):
        yield batch
