"""The durable store: the outbox of turns, their ledgers, and the memory of each key.

A turn's row goes ``pending → judged → done``; one that needs no audit starts as ``judged``. The rows of one memory key
become done in the order of their turns, whichever process has judged them and when: the transaction that commits them
enforces it.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, literal_column, or_, select, update
from sqlalchemy.exc import IntegrityError
from typing_extensions import override

from safi_agent.errors import OutboxError
from safi_agent.fork_safety import ForkHandler, Stage, register
from safi_agent.store.backlog import PendingAudits
from safi_agent.store.commit_listeners import CommitListeners
from safi_agent.store.commits import judged_head, ledger_json, prepare_batch, result_parameters
from safi_agent.store.database import Database
from safi_agent.store.database_errors import raise_as
from safi_agent.store.leases import LEASE, Leases, missing_value_sets
from safi_agent.store.process_id import this_process
from safi_agent.store.rows import (
    AuditResult,
    AuditRow,
    Commit,
    JudgedTurn,
    Memory,
    PreparedBatch,
    ReadyBatch,
    ReadyTurn,
    StoredTurn,
    UnsettledTurn,
)
from safi_agent.store.tables import ERASURES, NOT_DONE, NOT_SETTLED, PLACED, UNFINISHED, memory, turns, value_sets

FRESH = 1.0  # seconds for which a note of another process may be stale
MOST_NOTES = 10_000

# Statements before the answer, built once.
_NOTE = select(memory.c.note).where(memory.c.key == bindparam("of"))
_FIND = select(turns.c.turn, turns.c.body).where(turns.c.id == bindparam("of"))
_BLANK = {"turns": 1, "mu_turn": 0, "mu": "{}", "scores": "[]", "note": ""}
_ADD = turns.insert()

AT_A_TIME = 64  # turns of one memory key that are committed together

# Statements of every audit, built once.
_OF = turns.c.id == bindparam("of")
_THOSE = turns.c.id.in_(bindparam("those", expanding=True))
_ASKED = (turns.c.id, turns.c.body, value_sets.c.body.label("values"), turns.c.status, turns.c.attempts)
_LOAD = select(*_ASKED).outerjoin(value_sets, value_sets.c.id == turns.c.values_id).where(_THOSE)
_JUDGE = update(turns).where(_OF, turns.c.status == "pending").values(status="judged")
_JUDGE_MANY = _JUDGE.values(ledger=bindparam("found"), error=bindparam("why"), judge=bindparam("by"))
_JUDGE_ONE = _JUDGE_MANY.returning(turns.c.value_set, turns.c.key)
_TRIED = update(turns).where(_OF).values(attempts=bindparam("failed"))
_MEMORY = select(memory.c.mu, memory.c.mu_turn, memory.c.scores).where(memory.c.key == bindparam("of"))
# Locks the memory key for concurrent writers.
_LOCK_KEY = select(memory.c.key).where(memory.c.key == bindparam("of")).with_for_update()
_OPEN = (
    select(turns.c.id, turns.c.turn, turns.c.status, turns.c.value_set, turns.c.values_id, turns.c.erased)
    .where(turns.c.key == bindparam("of"), NOT_DONE)
    .order_by(turns.c.turn)
    .limit(bindparam("most"))
)
_HEAD = (
    select(turns.c.id, turns.c.erased)
    .where(turns.c.key == bindparam("of"), NOT_DONE)
    .order_by(turns.c.turn)
    .limit(bindparam("most"))
)
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
_UNSETTLED = (
    select(turns.c.id, turns.c.key, turns.c.log, turns.c.record)
    .where(turns.c.value_set == bindparam("of_set"), NOT_SETTLED, PLACED)
    .order_by(turns.c.place)
)
_UNSETTLED_TURNS = _UNSETTLED.where(_THOSE)
_UNSETTLED_KEYS = _UNSETTLED.where(turns.c.key.in_(bindparam("keys", expanding=True)))

_AUDIT_ROW = (turns.c.id, turns.c.status, turns.c.owner, turns.c.place, turns.c.record)
_AUDIT = (
    select(*_AUDIT_ROW)
    .where(or_(_OF, turns.c.reaudit_of == bindparam("of")), turns.c.key != literal_column(f"'{ERASURES}'"))
    .order_by(turns.c.turn.desc())  # a repetition comes after the first audit
    .limit(1)
)
_FINISHED = (
    select(*_AUDIT_ROW)
    .where(PLACED, turns.c.place > bindparam("after"), turns.c.value_set == bindparam("of_set"), turns.c.audit == 1)
    .order_by(turns.c.place)
    .limit(bindparam("most"))
)

_raise_outbox_error = raise_as(OutboxError, "The store failed")


class Store(ForkHandler):
    """A durable store; every method is one transaction.

    Attributes:
        database: the SQLite or PostgreSQL database.
        leases: which process works on which turn.
        pending: how many audits are open.
        commit_listeners: functions that are called after each commit of this process.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.leases = Leases(database)
        self.pending = PendingAudits(database)
        self.commit_listeners = CommitListeners()
        self._clear_cache()
        register(self, Stage.STORE)

    def _clear_cache(self) -> None:
        self._notes: dict[str, tuple[float, str]] = {}
        one_more = {"index_elements": ["key"], "set_": {"turns": memory.c.turns + 1}}
        self._next_turn = self.database.insert(memory).on_conflict_do_update(**one_more).returning(memory.c.turns)

    @override
    def after_fork(self) -> None:
        """In the child: discard what the parent has cached."""
        self._clear_cache()
        self.leases.clear()
        self.pending.clear()
        self.commit_listeners = CommitListeners()

    def cached_feedback_note(self, key: str) -> str | None:
        """The cached feedback note, if it is recent; None otherwise. Takes no lock."""
        read, note = self._notes.get(key, (-FRESH, ""))
        return note if time.monotonic() - read < FRESH else None

    @_raise_outbox_error
    def feedback_note(self, key: str) -> str:
        """The feedback note for the next turn of this key; empty where there is none."""
        if (note := self.cached_feedback_note(key)) is None:
            with self.database.transaction(reading=True) as c:
                note = c.scalar(_NOTE, {"of": key}) or ""
            self._remember(key, note)
        return note

    def _remember(self, key: str, note: str) -> None:
        if len(self._notes) > MOST_NOTES:
            self._notes.clear()
        self._notes[key] = (time.monotonic(), note)

    @_raise_outbox_error
    def find_turn(self, turn_id: str) -> tuple[int, dict[str, Any]] | None:
        """Number and body of the turn with this id."""
        return self._find_turn(turn_id)

    def _find_turn(self, turn_id: str) -> tuple[int, dict[str, Any]] | None:
        with self.database.transaction(reading=True) as c:
            row = c.execute(_FIND, {"of": turn_id}).first()
        return None if row is None else (row.turn, json.loads(row.body))

    @_raise_outbox_error
    def add_turn(
        self, body: Mapping[str, Any], values_id: str, log: str, *, audit: bool
    ) -> tuple[int, dict[str, Any] | None]:
        """Store a turn and assign its number; if its id exists, the stored turn is returned instead."""
        row = {
            "id": body["id"],
            "key": body["key"],
            "value_set": body["valueSet"],
            "values_id": values_id,
            "log": log,
            "status": "pending" if audit else "judged",
            "audit": int(audit),
            "attempts": 0,
            "body": json.dumps(body, allow_nan=False),
            "logged": 0 if log else 1,
            "settled": 0,
            "owner": this_process(),
            "lease": time.time() + LEASE,
            "since": time.time(),
        }
        try:
            with self.database.transaction() as c:
                number = self.next_number(c, body["key"])
                c.execute(_ADD, {**row, "turn": number})
                self.database.enqueue(
                    c, "safi.judge" if audit else "safi.settle", body["valueSet"], body["key"], body["id"]
                )
        except IntegrityError:
            if (before := self._find_turn(body["id"])) is None:
                raise
            return before  # the id exists; the transaction was rolled back
        if audit:
            self.pending.add(body["valueSet"])
        return number, None

    def next_number(self, c: Connection, key: str) -> int:
        """The number of the next turn of a memory key, which is locked until the transaction ends."""
        number: int = c.execute(self._next_turn, {**_BLANK, "key": key}).scalar_one()
        return number

    def save_values(self, values_id: str, body: str) -> None:
        """Store a value set or prompts, so that their turns can be audited by them after they were edited."""
        with self.database.transaction() as c:
            c.execute(self.database.insert(value_sets).values(id=values_id, body=body).on_conflict_do_nothing())
            if missing_value_sets(c, [values_id]):  # it was changed in the database
                c.execute(update(value_sets).where(value_sets.c.id == values_id).values(body=body))

    def read_values(self, values_id: str) -> str | None:
        """A stored value set, or stored prompts; None for an unknown id."""
        with self.database.transaction(reading=True) as c:
            body: str | None = c.scalar(_VALUES, {"of": values_id})
        return body

    def load_turns(self, turn_ids: Sequence[str]) -> dict[str, StoredTurn]:
        """The turns to audit by id, as far as they exist."""
        with self.database.transaction(reading=True) as c:
            rows = c.execute(_LOAD, {"those": list(turn_ids)}).all()
        return {row.id: StoredTurn(row.body, row.values, row.status, row.attempts) for row in rows}

    def save_attempts(self, turn_id: str, attempts: int) -> None:
        """Store the number of failed attempts, so that it survives a restart."""
        with self.database.transaction() as c:
            c.execute(_TRIED, {"of": turn_id, "failed": attempts})

    def save_ledger(
        self, turn_id: str, ledger: Sequence[Mapping[str, Any]] | None, error: str | None, judge: str | None = None
    ) -> None:
        """Store the ledger (None: the audit has failed), and the name of the judge's model.

        Only the first ledger of a turn counts.
        """
        with self.database.transaction() as c:
            parameters = {"of": turn_id, "found": ledger_json(ledger), "why": error, "by": judge}
            if (row := c.execute(_JUDGE_ONE, parameters).first()) is not None:
                self.database.enqueue(c, "safi.settle", row.value_set, row.key, turn_id)

    def load_ready(self, keys: Iterable[str], results: Mapping[str, AuditResult]) -> list[ReadyBatch]:
        """The turns of these memory keys that can be committed, at most ``AT_A_TIME`` for each key.

        Args:
            keys: memory keys.
            results: audit results by turn id that are not in the store yet.
        """
        ready = []
        with self.database.transaction(reading=True) as c:
            for key in sorted(keys):
                row = c.execute(_MEMORY, {"of": key}).first()
                rows = c.execute(_OPEN, {"of": key, "most": AT_A_TIME}).all()
                if row is not None and (heads := judged_head(rows, results)):
                    ready.append(ReadyBatch(key, (row.mu, row.mu_turn, row.scores), _load_rows(c, heads, results)))
        return ready

    def commit(
        self,
        batches: Sequence[PreparedBatch],
        results: Mapping[str, AuditResult] | None = None,
        *,
        tried: Mapping[str, int] | None = None,
        settled: Iterable[str] = (),
        value_set: str | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Commit prepared batches in one transaction; returns the committed records by turn id.

        A batch is skipped if another process has committed its memory key meanwhile, or one of its turns was erased.

        Args:
            batches: what is to be committed.
            results: audit results; those of turns that are not committed are stored, unless a result is stored already.
            tried: failed attempts, by turn id.
            settled: ids of turns for which nothing is left to do.
            value_set: settling of turns of other value sets is enqueued for the workers of those sets.
        """
        results = results or {}
        with self.database.transaction() as c:
            done = self._commit(c, batches, value_set)
            if parameters := [result_parameters(i, one) for i, one in results.items() if i not in done]:
                c.execute(_JUDGE_MANY, parameters)
            if tried:
                c.execute(_TRIED, [{"of": turn_id, "failed": failed} for turn_id, failed in tried.items()])
            if settled := list(settled):
                c.execute(_SETTLE, {"those": settled})
        for batch in batches:
            if batch.memory is not None and batch.rows[0]["of"] in done:
                self._remember(batch.key, batch.memory["note"])
        if done:
            self.commit_listeners.notify(done)
        return done

    def _commit(
        self, c: Connection, batches: Sequence[PreparedBatch], value_set: str | None
    ) -> dict[str, dict[str, Any]]:
        mine = [
            batch
            for batch in batches
            if c.scalar(_LOCK_KEY, {"of": batch.key}) is not None and self._is_valid(c, batch)
        ]
        done: dict[str, dict[str, Any]] = {}
        if not mine:
            return done
        for batch in mine:
            if batch.memory is not None:
                c.execute(_REMEMBER, {"of": batch.key, **batch.memory})
            for turn_id, of_set in batch.value_sets.items():
                if value_set not in (None, of_set):
                    self.database.enqueue(c, "safi.settle", of_set, batch.key, turn_id)
            done |= batch.records
        # Last, because all other commits wait for this lock until this one is on the disk.
        self.database.lock_commit_order(c)
        place: int = c.scalar(_LAST) or 0
        rows = [row for batch in mine for row in batch.rows]
        c.execute(_DONE, [{**row, "at": place + i} for i, row in enumerate(rows, 1)])
        return done

    def _is_valid(self, c: Connection, batch: PreparedBatch) -> bool:
        """Whether the turns are still the first ones of their memory key, which is locked, and as they were read."""
        head = [(row["of"], row["of"] in batch.erased) for row in batch.rows]
        return [(row.id, bool(row.erased)) for row in c.execute(_HEAD, {"of": batch.key, "most": len(head)})] == head

    def commit_ready(
        self,
        keys: Iterable[str],
        compute: Callable[[JudgedTurn, Memory], Commit],
        value_set: str | None = None,
        errors: dict[str, Exception] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Commit the judged turns at the heads of these memory keys, in order; returns their records by turn id.

        Turns that are judged meanwhile may be left for the next call.

        Args:
            keys: memory keys.
            compute: a pure function.
            value_set: settling of turns of other value sets is enqueued for the workers of those sets.
            errors: errors of ``compute`` are added by memory key, and the other keys are committed. Default: the first
                one is raised.
        """
        done: dict[str, dict[str, Any]] = {}
        left = set(keys)
        while left and (ready := self.load_ready(left, {})):
            batches = _prepare_batches(ready, compute, errors)
            done |= self.commit(batches, value_set=value_set) if batches else {}
            # Once more: what another process has changed meanwhile, and what is more than one batch.
            left = {batch.key for batch in batches if batch.rows[0]["of"] not in done or len(batch.rows) == AT_A_TIME}
        return done

    def load_records(self, turn_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The records of those of these turns that are committed."""
        with self.database.transaction(reading=True) as c:
            return {row.id: json.loads(row.record) for row in c.execute(_RECORDS, {"those": list(turn_ids)})}

    def find_audit(self, turn_id: str) -> AuditRow | None:
        """A turn, or the newest repetition of its audit; None if there is no such turn."""
        with self.database.transaction(reading=True) as c:
            row = c.execute(_AUDIT, {"of": turn_id}).first()
        return None if row is None else _audit_row(row)

    def load_finished(self, value_set: str, after: int, most: int) -> list[AuditRow]:
        """The audited turns of a value set that were committed after a position, in commit order, at most ``most``."""
        with self.database.transaction(reading=True) as c:
            rows = c.execute(_FINISHED, {"of_set": value_set, "after": after, "most": most}).all()
        return [_audit_row(row) for row in rows]

    def last_position(self) -> int:
        """The position of the last commit; 0 if there is none."""
        with self.database.transaction(reading=True) as c:
            return c.scalar(_LAST) or 0

    def load_unsettled(
        self, value_set: str, turn_ids: Collection[str] = (), keys: Collection[str] = ()
    ) -> list[UnsettledTurn]:
        """The committed turns of a value set that are not settled, those of each memory key in commit order.

        Args:
            value_set: the name of the value set.
            turn_ids: only these turns,
            keys: and all turns of these memory keys.
        """
        with self.database.transaction(reading=True) as c:
            rows = list(c.execute(_UNSETTLED_KEYS, {"of_set": value_set, "keys": list(keys)})) if keys else []
            if turn_ids:
                rows += c.execute(_UNSETTLED_TURNS, {"of_set": value_set, "those": list(turn_ids)})
        return [UnsettledTurn(row.id, row.key, row.log, json.loads(row.record)) for row in dict.fromkeys(rows)]

    def mark_settled(self, turn_ids: Sequence[str]) -> None:
        """Mark turns as settled: their hooks have run, and nothing is left to do, also not for waiting jobs."""
        with self.database.transaction() as c:
            c.execute(_SETTLE, {"those": list(turn_ids)})
            self.database.withdraw_settled(c, turn_ids)

    def count_unfinished(self, value_set: str) -> dict[str, int]:
        """The number of unfinished turns of a value set, by the process that owns them."""
        open_ = (turns.c.value_set == value_set, UNFINISHED)
        with self.database.transaction(reading=True) as c:
            rows = c.execute(select(turns.c.owner, func.count()).where(*open_).group_by(turns.c.owner)).all()
        return {owner: count for owner, count in rows}


def _prepare_batches(
    ready: Iterable[ReadyBatch],
    compute: Callable[[JudgedTurn, Memory], Commit],
    errors: dict[str, Exception] | None,
) -> list[PreparedBatch]:
    """Compute these commits; without ``errors``, to which those of ``compute`` are added, they are raised."""
    batches = []
    for batch in ready:
        try:
            batches.append(prepare_batch(batch, compute))
        except Exception as error:
            if errors is None:
                raise
            errors[batch.key] = error
    return batches


def _audit_row(row: Any) -> AuditRow:
    record = None if row.record is None else json.loads(row.record)
    return AuditRow(row.id, row.status, row.owner, row.place or 0, record)


def _load_rows(c: Connection, rows: Sequence[Any], results: Mapping[str, AuditResult]) -> list[ReadyTurn]:
    """Load what a commit needs of these rows, except what is in memory already."""
    own = {row.id: results[row.id] for row in rows if row.status != "judged"}
    missing = [row.id for row in rows if row.id not in own or own[row.id].body is None]
    bodies = {row.id: row for row in c.execute(_BODIES, {"those": missing})} if missing else {}
    sets = {values_id: c.scalar(_VALUES, {"of": values_id}) for values_id in {row.values_id for row in rows}}
    heads = []
    for row in rows:
        result: Any = own.get(row.id, bodies.get(row.id))
        body = bodies[row.id].body if row.id in bodies else result.body
        values, erased = sets[row.values_id], bool(row.erased)
        heads.append(
            ReadyTurn(row.id, row.turn, row.value_set, body, result.ledger, result.error, values, result.judge, erased)
        )
    return heads
