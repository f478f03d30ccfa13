"""The lane of a memory key: its turns become done in the order of their numbers, whoever judged them and when."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from safi_agent.store.leases import lost_sets
from safi_agent.store.outbox import Outbox
from safi_agent.store.rows import Commit, Head, Judged, Kept, Made, Memory, Ready, Row
from safi_agent.store.tables import NOT_DONE, NOT_SETTLED, PLACED, UNFINISHED, memory, turns, value_sets

AT_A_TIME = 64  # turns of one lane that are committed together

# What every audit asks is put together once.
_OF = turns.c.id == bindparam("of")
_THOSE = turns.c.id.in_(bindparam("those", expanding=True))
_ASKED = (turns.c.id, turns.c.body, value_sets.c.body.label("values"), turns.c.status, turns.c.attempts)
_LOAD = select(*_ASKED).outerjoin(value_sets, value_sets.c.id == turns.c.values_id).where(_THOSE)
_JUDGE = update(turns).where(_OF, turns.c.status == "pending").values(status="judged")
_JUDGE_MANY = _JUDGE.values(ledger=bindparam("found"), error=bindparam("why"), judge=bindparam("by"))
_JUDGE_ONE = _JUDGE_MANY.returning(turns.c.value_set, turns.c.key)
_TRIED = update(turns).where(_OF).values(attempts=bindparam("failed"))
_MEMORY = select(memory.c.mu, memory.c.mu_turn, memory.c.scores).where(memory.c.key == bindparam("of"))
# Where others write at the same time, this row is what they wait for.
_LANE = select(memory.c.key).where(memory.c.key == bindparam("of")).with_for_update()
_OPEN = (
    select(turns.c.id, turns.c.turn, turns.c.status, turns.c.value_set, turns.c.values_id)
    .where(turns.c.key == bindparam("of"), NOT_DONE)
    .order_by(turns.c.turn)
    .limit(bindparam("most"))
)
_HEAD = select(turns.c.id).where(turns.c.key == bindparam("of"), NOT_DONE).order_by(turns.c.turn).limit(1)
_BODIES = select(turns.c.id, turns.c.body, turns.c.ledger, turns.c.error, turns.c.judge).where(_THOSE)
_VALUES = select(value_sets.c.body).where(value_sets.c.id == bindparam("of"))
_REMEMBER = update(memory).where(memory.c.key == bindparam("of"))
_LAST = select(func.coalesce(func.max(turns.c.place), 0)).where(PLACED)
_DONE = (
    update(turns)
    .where(_OF)
    .values(
        status="done",
        place=bindparam("at"),
        record=bindparam("text"),
        ledger=func.coalesce(bindparam("found"), turns.c.ledger),
        error=func.coalesce(bindparam("why"), turns.c.error),
        judge=func.coalesce(bindparam("by"), turns.c.judge),
    )
)
_RECORDS = select(turns.c.id, turns.c.record).where(_THOSE, PLACED)
_SETTLE = update(turns).where(_THOSE).values(settled=1)


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

    def load(self, turn_ids: Sequence[str]) -> dict[str, Kept]:
        """Turns as they have to be judged, by id; those that are not there are left out."""
        with self._transaction(reading=True) as c:
            rows = c.execute(_LOAD, {"those": list(turn_ids)}).all()
        return {row.id: Kept(row.body, row.values, row.status, row.attempts) for row in rows}

    def tried(self, turn_id: str, attempts: int) -> None:
        """Count the attempts that failed, so that a restart does not begin anew."""
        with self._transaction() as c:
            c.execute(_TRIED, {"of": turn_id, "failed": attempts})

    def judged(
        self, turn_id: str, ledger: Sequence[Mapping[str, Any]] | None, error: str | None, judge: str | None = None
    ) -> None:
        """Keep what the Conscience found (None: it failed for good), and which model did.

        Only the first ledger of a turn counts.
        """
        with self._transaction() as c:
            found = {"of": turn_id, "found": _text(ledger), "why": error, "by": judge}
            if (row := c.execute(_JUDGE_ONE, found).first()) is not None:
                self.database.enqueue(c, "safi.settle", row.value_set, row.key, turn_id)

    def ready(self, keys: Iterable[str], found: Mapping[str, Judged]) -> list[Ready]:
        """What can be committed in the lanes of these keys, at most ``AT_A_TIME`` turns of each.

        Args:
            keys: memory keys.
            found: what audits came to, by turn id, that is not in the store yet.
        """
        ready = []
        with self._transaction(reading=True) as c:
            for key in sorted(keys):
                lane = c.execute(_MEMORY, {"of": key}).first()
                rows = c.execute(_OPEN, {"of": key, "most": AT_A_TIME}).all()
                if lane is not None and (heads := _judged(rows, found)):
                    ready.append(Ready(key, (lane.mu, lane.mu_turn, lane.scores), _read(c, heads, found)))
        return ready

    def commit(
        self,
        lanes: Sequence[Made],
        found: Mapping[str, Judged] | None = None,
        *,
        tried: Mapping[str, int] | None = None,
        settled: Iterable[str] = (),
        value_set: str | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Write in one transaction what was made of lanes, and give the records that are committed, by turn id.

        A lane in which others were quicker is left as it is.

        Args:
            lanes: what is to be committed.
            found: what audits came to; of turns that are not committed it is kept, unless something was kept before.
            tried: failed attempts, by turn id.
            settled: ids of turns for which nothing is left to do.
            value_set: what is left to do for turns of other value sets is enqueued for those who know them.
        """
        found = found or {}
        with self._transaction() as c:
            done = self._commit(c, lanes, value_set)
            if kept := [_found(i, one) for i, one in found.items() if i not in done]:
                c.execute(_JUDGE_MANY, kept)
            if tried:
                c.execute(_TRIED, [{"of": turn_id, "failed": failed} for turn_id, failed in tried.items()])
            if settled := list(settled):
                c.execute(_SETTLE, {"those": settled})
        for made in lanes:
            if made.memory is not None and made.rows[0]["of"] in done:
                self._remember(made.key, made.memory["note"])
        return done

    def _commit(self, c: Connection, lanes: Sequence[Made], value_set: str | None) -> dict[str, dict[str, Any]]:
        mine = [made for made in lanes if c.scalar(_LANE, {"of": made.key}) is not None]
        done: dict[str, dict[str, Any]] = {}
        if not mine:
            return done
        self.database.give_places(c)  # after the lanes, which may be waited for while others give places
        place: int = c.scalar(_LAST) or 0
        for made in mine:
            if c.scalar(_HEAD, {"of": made.key}) != made.rows[0]["of"]:
                continue
            c.execute(_DONE, [{**row, "at": place + i} for i, row in enumerate(made.rows, 1)])
            if made.memory is not None:
                c.execute(_REMEMBER, {"of": made.key, **made.memory})
            for turn_id, of_set in made.value_sets.items():
                if value_set not in (None, of_set):
                    self.database.enqueue(c, "safi.settle", of_set, made.key, turn_id)
            place += len(made.rows)
            done |= made.records
        return done

    def commit_ready(
        self, key: str, compute: Callable[[Row, Memory], Commit], value_set: str | None = None
    ) -> dict[str, dict[str, Any]]:
        """Commit the judged turns at the head of this key's lane, in order, and give their records by id.

        ``compute`` must be pure. What is left to do for turns of another than this value set is enqueued for those who
        know that one.
        """
        done: dict[str, dict[str, Any]] = {}
        while lanes := self.ready([key], {}):
            done |= self.commit([make(lane, compute) for lane in lanes], value_set=value_set)
        return done

    def records(self, turn_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The records of those of these turns that are committed."""
        with self._transaction(reading=True) as c:
            return {row.id: json.loads(row.record) for row in c.execute(_RECORDS, {"those": list(turn_ids)})}

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

    def left(self, value_set: str) -> dict[str, int]:
        """How many turns of this value set are not done or not in their log, by the process that works on them."""
        open_ = (turns.c.value_set == value_set, UNFINISHED)
        with self._transaction(reading=True) as c:
            rows = c.execute(select(turns.c.owner, func.count()).where(*open_).group_by(turns.c.owner)).all()
        return {owner: count for owner, count in rows}


def make(lane: Ready, compute: Callable[[Row, Memory], Commit]) -> Made:
    """What is to be written of a lane. It needs no transaction: ``commit`` looks whether it still holds.

    Raises:
        Exception: whatever ``compute`` raises, or a turn that cannot be read.
    """
    mu, mu_turn, scores = lane.memory
    before, moved = Memory(json.loads(mu), mu_turn, json.loads(scores)), None
    rows, records = [], {}
    for head in lane.heads:
        body: Any = json.loads(head.body) if isinstance(head.body, str) else head.body
        ledger: Any = json.loads(head.ledger) if isinstance(head.ledger, str) else head.ledger
        made = compute(Row(head.id, head.turn, body, ledger, head.error, head.values, head.judge), before)
        if made.memory is not None:
            before, moved = made.memory, made.note
        rows.append({"of": head.id, "text": json.dumps(made.record, allow_nan=False), **_new(head)})
        records[head.id] = made.record
    after = None if moved is None else {**_memory(before), "note": moved}
    return Made(lane.key, rows, records, {head.id: head.value_set for head in lane.heads}, after)


def _new(head: Head) -> dict[str, str | None]:
    """What an audit came to, where it is not in the store yet."""
    if head.ledger is None:
        return {"found": None, "why": head.error, "by": None}
    if isinstance(head.ledger, str):
        return {"found": None, "why": None, "by": None}
    return {"found": json.dumps(head.ledger, allow_nan=False), "why": None, "by": head.judge}


def _found(turn_id: str, one: Judged) -> dict[str, str | None]:
    return {"of": turn_id, "found": _text(one.ledger), "why": one.error, "by": one.judge}


def _text(ledger: Sequence[Mapping[str, Any]] | None) -> str | None:
    return None if ledger is None else json.dumps(ledger, allow_nan=False)


def _memory(after: Memory) -> dict[str, Any]:
    return {"mu": json.dumps(after.mu), "mu_turn": after.mu_turn, "scores": json.dumps(after.scores)}


def _judged(rows: Sequence[Any], found: Mapping[str, Judged]) -> list[Any]:
    """The rows at the head of a lane that were judged."""
    return list(takewhile(lambda row: row.status == "judged" or row.id in found, rows))


def _read(c: Connection, rows: Sequence[Any], found: Mapping[str, Judged]) -> list[Head]:
    """All that a commit needs of these rows; what is at hand is not read again."""
    own = {row.id: found[row.id] for row in rows if row.status != "judged"}
    missing = [row.id for row in rows if row.id not in own or own[row.id].body is None]
    kept = {row.id: row for row in c.execute(_BODIES, {"those": missing})} if missing else {}
    sets = {values_id: c.scalar(_VALUES, {"of": values_id}) for values_id in {row.values_id for row in rows}}
    heads = []
    for row in rows:
        said: Any = own.get(row.id, kept.get(row.id))
        body = kept[row.id].body if row.id in kept else said.body
        values = sets[row.values_id]
        heads.append(Head(row.id, row.turn, row.value_set, body, said.ledger, said.error, values, said.judge))
    return heads
