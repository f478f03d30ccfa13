"""The lane of a memory key: its turns become done in the order of their numbers, whoever judged them and when."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from safi_agent.store.leases import lost_sets
from safi_agent.store.outbox import Outbox
from safi_agent.store.rows import Commit, Kept, Memory, Row
from safi_agent.store.tables import NOT_DONE, NOT_SETTLED, PLACED, memory, turns, value_sets

# What every audit asks is put together once.
_OF = turns.c.id == bindparam("of")
_ASKED = (turns.c.body, value_sets.c.body.label("values"), turns.c.status, turns.c.attempts)
_LOAD = select(*_ASKED).join(value_sets, value_sets.c.id == turns.c.values_id).where(_OF)
_JUDGE = (
    update(turns)
    .where(_OF, turns.c.status == "pending")
    .values(status="judged")
    .returning(turns.c.value_set, turns.c.key)
)
# Where others write at the same time, this row is what they wait for.
_LANE = select(memory).where(memory.c.key == bindparam("of")).with_for_update()
_HEAD = select(turns).where(turns.c.key == bindparam("of"), NOT_DONE).order_by(turns.c.turn).limit(1)
_GOES_ON = select(turns.c.status).where(turns.c.key == bindparam("of"), NOT_DONE).order_by(turns.c.turn).limit(1)
_VALUES = select(value_sets.c.body).where(value_sets.c.id == bindparam("of"))
_REMEMBER = update(memory).where(memory.c.key == bindparam("of"))
_NEXT = select(func.coalesce(func.max(turns.c.place), 0) + 1).where(PLACED).scalar_subquery()
_DONE = update(turns).where(_OF).values(status="done", place=_NEXT)
_RECORD = select(turns.c.record).where(_OF)
_SETTLE = update(turns).where(turns.c.id.in_(bindparam("those", expanding=True))).values(settled=1)


class Lane(Outbox):
    """Keeps what the Conscience found, and commits it in its turn."""

    def keep_values(self, values_id: str, body: str) -> None:
        """Remember a value set, so that its turns can be judged by it after it was edited."""
        with self._transaction() as c:
            c.execute(self.database.insert(value_sets).values(id=values_id, body=body).on_conflict_do_nothing())
            if lost_sets(c, [values_id]):  # it was changed in the store
                c.execute(update(value_sets).where(value_sets.c.id == values_id).values(body=body))

    def kept_values(self, values_id: str) -> str | None:
        """A value set that was kept; None for an id that is not known."""
        with self._transaction(reading=True) as c:
            body: str | None = c.scalar(_VALUES, {"of": values_id})
        return body

    def load(self, turn_id: str) -> Kept:
        """A turn as it has to be judged."""
        with self._transaction(reading=True) as c:
            row = c.execute(_LOAD, {"of": turn_id}).one()
        return Kept(json.loads(row.body), row.values, row.status, row.attempts)

    def tried(self, turn_id: str, attempts: int) -> None:
        """Count the attempts that failed, so that a restart does not begin anew."""
        with self._transaction() as c:
            c.execute(update(turns).where(turns.c.id == turn_id).values(attempts=attempts))

    def judged(self, turn_id: str, ledger: Sequence[Mapping[str, Any]] | None, error: str | None) -> None:
        """Keep what the Conscience found (None: it failed for good); only the first ledger of a turn counts."""
        text = None if ledger is None else json.dumps(ledger, allow_nan=False)
        with self._transaction() as c:
            if (row := c.execute(_JUDGE, {"of": turn_id, "ledger": text, "error": error}).first()) is not None:
                self.database.enqueue(c, "safi.settle", row.value_set, row.key, turn_id)

    def commit_ready(
        self, key: str, compute: Callable[[Row, Memory], Commit], value_set: str | None = None
    ) -> dict[str, dict[str, Any]]:
        """Commit the judged turns at the head of this key's lane, in order, and give their records by id.

        ``compute`` must be pure. What is left to do for turns of another than this value set is enqueued for those who
        know that one.
        """
        done: dict[str, dict[str, Any]] = {}
        more = True
        while more:
            with self._transaction() as c:
                lane = c.execute(_LANE, {"of": key}).first()
                row = c.execute(_HEAD, {"of": key}).first()
                if lane is None or row is None or row.status != "judged":
                    break
                made = _commit(c, lane, row, compute)
                more = c.scalar(_GOES_ON, {"of": key}) == "judged"
                if value_set not in (None, row.value_set):
                    self.database.enqueue(c, "safi.settle", row.value_set, key, row.id)
            if made.memory is not None:
                self._remember(key, made.note)
            done[row.id] = made.record
        return done

    def record(self, turn_id: str) -> dict[str, Any] | None:
        """The record of a committed turn; None before that."""
        with self._transaction(reading=True) as c:
            text = c.scalar(_RECORD, {"of": turn_id})
        return None if text is None else json.loads(text)

    def unsettled(self, key: str, value_set: str) -> list[tuple[str, str, dict[str, Any]]]:
        """Id, log and record of the committed turns for which something is left to do, in the order of commits."""
        mine = (turns.c.key == key, turns.c.value_set == value_set, NOT_SETTLED, PLACED)
        with self._transaction(reading=True) as c:
            rows = c.execute(select(turns.c.id, turns.c.log, turns.c.record).where(*mine).order_by(turns.c.place)).all()
        return [(row.id, row.log, json.loads(row.record)) for row in rows]

    def settle(self, turn_ids: Sequence[str]) -> None:
        """Nothing is left to do for these turns."""
        with self._transaction() as c:
            c.execute(_SETTLE, {"those": list(turn_ids)})


def _commit(c: Connection, lane: Any, row: Any, compute: Callable[[Row, Memory], Commit]) -> Commit:
    before = Memory(json.loads(lane.mu), lane.mu_turn, json.loads(lane.scores))
    ledger = None if row.ledger is None else json.loads(row.ledger)
    values = c.execute(_VALUES, {"of": row.values_id}).scalar_one()
    made = compute(Row(row.id, row.turn, json.loads(row.body), ledger, row.error, values), before)
    if made.memory is not None:
        mu, mu_turn, scores = made.memory
        changed = {"mu": json.dumps(mu), "mu_turn": mu_turn, "scores": json.dumps(scores), "note": made.note}
        c.execute(_REMEMBER, {"of": row.key, **changed})
    record = json.dumps(made.record, ensure_ascii=True, allow_nan=False)
    c.execute(_DONE, {"of": row.id, "record": record})
    return made
