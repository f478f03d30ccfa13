"""The way to the answer: what past audits tell the next turn, and the turn's own row, durable before it leaves."""

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError

from safi_agent.errors import OutboxError
from safi_agent.store.backlog import Backlogs
from safi_agent.store.database_errors import told_as
from safi_agent.store.leases import LEASE
from safi_agent.store.process_id import me
from safi_agent.store.tables import memory, turns

FRESH = 1.0  # seconds for which what another process learned may go unseen in a note
MOST_NOTES = 10_000

# What is on the way to the answer is put together once.
_NOTE = select(memory.c.note).where(memory.c.key == bindparam("of"))
_FIND = select(turns.c.turn, turns.c.body).where(turns.c.id == bindparam("of"))
_BLANK = {"turns": 1, "mu_turn": 0, "mu": "{}", "scores": "[]", "note": ""}
_ADD = turns.insert()

_or_withheld = told_as(OutboxError, "The store failed")


class Outbox(Backlogs):
    """Numbers turns and keeps them until they are audited. All it does raises OutboxError where the store fails."""

    def _connected(self) -> None:
        super()._connected()
        self._notes: dict[str, tuple[float, str]] = {}
        one_more = {"index_elements": ["key"], "set_": {"turns": memory.c.turns + 1}}
        self._count = self.database.insert(memory).on_conflict_do_update(**one_more).returning(memory.c.turns)

    def known_note(self, key: str) -> str | None:
        """The coaching note, if it was read or written here a moment ago; it takes no lock and no time."""
        read, note = self._notes.get(key, (-FRESH, ""))
        return note if time.monotonic() - read < FRESH else None

    @_or_withheld
    def note(self, key: str) -> str:
        """The coaching note for the next turn of this key; empty where there is none."""
        if (note := self.known_note(key)) is None:
            with self._transaction(reading=True) as c:
                note = c.scalar(_NOTE, {"of": key}) or ""
            self._remember(key, note)
        return note

    def _remember(self, key: str, note: str) -> None:
        if len(self._notes) > MOST_NOTES:
            self._notes.clear()
        self._notes[key] = (time.monotonic(), note)

    @_or_withheld
    def find(self, turn_id: str) -> tuple[int, dict[str, Any]] | None:
        """Number and body of the turn with this id."""
        return self._find(turn_id)

    def _find(self, turn_id: str) -> tuple[int, dict[str, Any]] | None:
        with self._transaction(reading=True) as c:
            row = c.execute(_FIND, {"of": turn_id}).first()
        return None if row is None else (row.turn, json.loads(row.body))

    @_or_withheld
    def add(
        self, body: Mapping[str, Any], values_id: str, log: str, *, audit: bool
    ) -> tuple[int, dict[str, Any] | None]:
        """Make a turn durable and give it its number; if its id was there before, what stands there comes back."""
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
            "owner": me(),
            "lease": time.time() + LEASE,
            "since": time.time(),
        }
        try:
            with self._transaction() as c:
                number: int = c.execute(self._count, {**_BLANK, "key": body["key"]}).scalar_one()
                c.execute(_ADD, {**row, "turn": number})
                self.database.enqueue(
                    c, "safi.judge" if audit else "safi.settle", body["valueSet"], body["key"], body["id"]
                )
        except IntegrityError:
            if (before := self._find(body["id"])) is None:
                raise
            return before  # the id was there; nothing was counted
        if audit:
            self.added(body["valueSet"])
        return number, None
