"""Re-audits: turns that repeat the audit of a turn whose audit has failed.

The log is append-only and μ depends on the order of audits, so a repeated audit cannot replace the first. It is a
separate turn at the end of its memory key, with its own id and number, the body of the first turn, and its id.
"""

import json
import logging
import time
from collections.abc import Collection, Iterable
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from sqlalchemy import Connection, and_, exists, func, or_, select, update

from safi_agent.contents import new_salt
from safi_agent.store.leases import LEASE, missing_value_sets, missing_values_message
from safi_agent.store.process_id import this_process
from safi_agent.store.rows import Job
from safi_agent.store.store import Store
from safi_agent.store.tables import AGAIN, FAILED, NOT_ERASED, memory, turns

log = logging.getLogger("safi_agent")
FLAG = "reaudited"

_repeat = turns.alias("repeat")
# An open or successful re-audit of a turn.
_REPEATED = exists().where(
    _repeat.c.reaudit_of == turns.c.id, or_(_repeat.c.status != "done", _repeat.c.error.is_(None))
)
_TO_REPEAT = and_(FAILED, turns.c.status == "done", turns.c.reaudit_of.is_(None), NOT_ERASED, ~_REPEATED)
_COPIED = ("key", "values_id", "log", "audit")


def failed_audits(store: Store, value_set: str, turn_ids: Collection[str] | None = None) -> list[str]:
    """The ids of turns whose audit failed, without a successful or open re-audit and not erased.

    Args:
        store: the store of the turns.
        value_set: the name of their value set, where ``turn_ids`` is None.
        turn_ids: restrict the result to these turns, of any value set.

    Raises:
        ValueError: an id is unknown to the store.
    """
    with store.database.transaction(reading=True) as c:
        which = turns.c.value_set == value_set if turn_ids is None else turns.c.id.in_(_firsts(c, turn_ids))
        return list(c.scalars(select(turns.c.id).where(which, _TO_REPEAT).order_by(turns.c.key, turns.c.turn)))


def open_reaudits(store: Store, turn_ids: Collection[str]) -> list[str]:
    """The ids of these turns that have an open re-audit."""
    open_ = and_(AGAIN, turns.c.reaudit_of.in_(turn_ids), turns.c.status != "done")
    with store.database.transaction(reading=True) as c:
        return list(c.scalars(select(turns.c.reaudit_of).where(open_)))


def add_reaudit(store: Store, value_set: str, turn_id: str) -> Job | None:
    """Add a re-audit of this turn for the chain of this value set; None if it is not needed."""
    with store.database.transaction() as c:
        key = c.scalar(select(turns.c.key).where(turns.c.id == turn_id))
        # Serializes re-audits of a memory key.
        c.execute(select(memory.c.turns).where(memory.c.key == key).with_for_update())
        first = c.execute(select(turns).where(turns.c.id == turn_id, _TO_REPEAT)).first()
        if first is None or _is_lost(c, first):
            return None
        one_more = update(memory).where(memory.c.key == key).values(turns=memory.c.turns + 1)
        row = _repetition(c, first, value_set, c.execute(one_more.returning(memory.c.turns)).scalar_one())
        c.execute(turns.insert(), row)
        store.database.enqueue(c, "safi.judge", value_set, row["key"], row["id"])
    return Job(row["id"], row["key"], row["log"], True)


def _is_lost(c: Connection, first: Any) -> bool:
    if lost := missing_value_sets(c, [first.values_id]):
        log.warning("Turn %s is not audited again: %s", first.id, missing_values_message(first.values_id))
    return bool(lost)


def _firsts(c: Connection, turn_ids: Iterable[str]) -> list[str]:
    ids = list(dict.fromkeys(turn_ids))
    rows = c.execute(select(turns.c.id, turns.c.reaudit_of).where(turns.c.id.in_(ids)))
    firsts = {row.id: row.reaudit_of or row.id for row in rows}
    if unknown := [turn_id for turn_id in ids if turn_id not in firsts]:
        raise ValueError(f"turn_ids: expected ids of turns in this store, got {unknown[0]!r}.")
    return list(firsts.values())


def _repetition(c: Connection, first: Any, value_set: str, number: int) -> dict[str, Any]:
    times = c.scalar(select(func.count()).select_from(turns).where(AGAIN, turns.c.reaudit_of == first.id)) or 0
    own = str(uuid5(NAMESPACE_OID, f"safi.reaudit:{first.id}:{times + 1}"))
    body = json.loads(first.body)
    flags = [*(flag for flag in body["flags"] if flag != FLAG), FLAG]
    return {
        **{name: getattr(first, name) for name in _COPIED},
        "id": own,
        "turn": number,
        "value_set": value_set,
        "status": "pending",
        "attempts": 0,
        "body": json.dumps(
            {**body, "id": own, "flags": flags, "reauditOf": first.id, "salt": new_salt()}, allow_nan=False
        ),
        "logged": 0 if first.log else 1,
        "settled": 0,
        "owner": this_process(),
        "lease": time.time() + LEASE,
        "since": time.time(),
        "reaudit_of": first.id,
    }
