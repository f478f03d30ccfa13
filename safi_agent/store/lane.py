"""The lane of a memory key: its turns become done in the order of their numbers, whoever judged them and when."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, func, select, update
from sqlalchemy.dialects.sqlite import insert

from safi_agent.store.outbox import Outbox
from safi_agent.store.rows import Commit, Memory, Row
from safi_agent.store.tables import NOT_DONE, PLACED, memory, turns, value_sets


class Lane(Outbox):
    """Keeps what the Conscience found, and commits it in its turn."""

    def keep_values(self, values_id: str, body: str) -> None:
        """Remember a value set, so that its turns can be judged by it after it was edited."""
        with self._transaction() as c:
            c.execute(insert(value_sets).values(id=values_id, body=body).on_conflict_do_nothing())

    def load(self, turn_id: str) -> tuple[dict[str, Any], str, str]:
        """Body, value set and status of a turn."""
        columns = (turns.c.body, value_sets.c.body.label("values"), turns.c.status)
        with self._transaction(reading=True) as c:
            found = select(*columns).join(value_sets, value_sets.c.id == turns.c.values_id).where(turns.c.id == turn_id)
            row = c.execute(found).one()
        return json.loads(row.body), row.values, row.status

    def tried(self, turn_id: str, attempts: int) -> None:
        """Count the attempts that failed, so that a restart does not begin anew."""
        with self._transaction() as c:
            c.execute(update(turns).where(turns.c.id == turn_id).values(attempts=attempts))

    def judged(self, turn_id: str, ledger: Sequence[Mapping[str, Any]] | None, error: str | None) -> None:
        """Keep what the Conscience found (None: it failed for good); only the first ledger of a turn counts."""
        text = None if ledger is None else json.dumps(ledger, allow_nan=False)
        with self._transaction() as c:
            open_ = and_(turns.c.id == turn_id, turns.c.status == "pending")
            c.execute(update(turns).where(open_).values(status="judged", ledger=text, error=error))

    def commit_ready(self, key: str, compute: Callable[[Row, Memory], Commit]) -> list[str]:
        """Commit the judged turns at the head of this key's lane, in order; ``compute`` must be pure."""
        done: list[str] = []
        while True:
            with self._transaction() as c:
                head = select(turns).where(turns.c.key == key, NOT_DONE).order_by(turns.c.turn).limit(1)
                row = c.execute(head).first()
                if row is None or row.status != "judged":
                    return done
                made = _commit(c, key, row, compute)
            if made.memory is not None:
                self._remember(key, made.note)
            done.append(row.id)

    def record(self, turn_id: str) -> dict[str, Any] | None:
        """The record of a committed turn; None before that."""
        with self._transaction(reading=True) as c:
            text = c.scalar(select(turns.c.record).where(turns.c.id == turn_id))
        return None if text is None else json.loads(text)

    def settle(self, turn_ids: Sequence[str]) -> None:
        """Nothing is left to do for these turns."""
        with self._transaction() as c:
            c.execute(update(turns).where(turns.c.id.in_(turn_ids)).values(settled=1))


def _commit(c: Connection, key: str, row: Any, compute: Callable[[Row, Memory], Commit]) -> Commit:
    kept = c.execute(select(memory).where(memory.c.key == key)).one()
    before = Memory(json.loads(kept.mu), kept.mu_turn, json.loads(kept.scores))
    ledger = None if row.ledger is None else json.loads(row.ledger)
    values = c.execute(select(value_sets.c.body).where(value_sets.c.id == row.values_id)).scalar_one()
    made = compute(Row(row.id, row.turn, json.loads(row.body), ledger, row.error, values), before)
    if made.memory is not None:
        mu, mu_turn, scores = made.memory
        changed = {"mu": json.dumps(mu), "mu_turn": mu_turn, "scores": json.dumps(scores), "note": made.note}
        c.execute(update(memory).where(memory.c.key == key).values(changed))
    place = select(func.coalesce(func.max(turns.c.place), 0) + 1).where(PLACED).scalar_subquery()
    record = json.dumps(made.record, ensure_ascii=True, allow_nan=False)
    c.execute(update(turns).where(turns.c.id == row.id).values(status="done", record=record, place=place))
    return made
