"""Release: the only way out. The turn is made durable, then the approved answer or the fixed refusal leaves."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import RunnableConfig

from safi_agent.audit import Audits
from safi_agent.faculties.base import Faculty
from safi_agent.record import body
from safi_agent.store import BusyError, Job
from safi_agent.turn import Turn
from safi_agent.values import ValueSet


def refusal(values: ValueSet) -> str:
    """The same text for every refusal, whatever was asked, drafted or ruled."""
    return "\n\n".join([values.refusal, *(text for text in values.disclaimers if text not in values.refusal)])


def message(kept: Mapping[str, Any], number: int) -> AIMessage:
    """The answer that leaves, with nothing of what went before it."""
    told = {
        "turn": number,
        "turnId": kept["id"],
        "willDecision": kept["decision"],
        "auditStatus": "pending" if kept["decision"] == "approve" else "none",
        "valueSet": kept["valueSet"],
        "memoryKey": kept["key"],
        "models": kept["models"],
    }
    return AIMessage(kept["final"], id=f"safi-{kept['id']}", response_metadata={"safi": told})


def check_same(kept: Mapping[str, Any], turn: Turn) -> None:
    """A turn id stands for one prompt under one memory key.

    Raises:
        ValueError: it was used for another one.
    """
    if (kept["prompt"], kept["key"]) != (turn["prompt"], turn["key"]):
        raise ValueError(f"safi_turn_id: expected a new id for another prompt or key, got {turn['id']!r} again.")


@dataclass(frozen=True, eq=False)
class Release(Faculty):
    """Adds ``answer``. Raises OutboxError when the turn cannot be written: then nothing leaves."""

    auditor: Audits
    models: Mapping[str, str]

    adds = "answer"

    def work(self, turn: Turn, config: RunnableConfig) -> AIMessage:
        """Write, hand over to the audit branch, answer."""
        return self._leave(turn, patient=True)

    async def awork(self, turn: Turn, config: RunnableConfig) -> AIMessage:
        """The same; where another writes just now it waits on a thread, not on the caller's loop."""
        try:
            return self._leave(turn, patient=False)
        except BusyError:
            return await asyncio.to_thread(self.work, turn, config)

    def _leave(self, turn: Turn, *, patient: bool) -> AIMessage:
        approved = turn["verdict"].decision == "approve"
        values = self.auditor.plan.values
        final = turn["draft"].answer if approved else refusal(values)
        number, kept = self.write(turn, final, audit=approved, patient=patient)
        answer = message(kept, number)
        answer.usage_metadata = add_usage(turn["draft"].usage, turn["verdict"].usage) if turn["draft"].usage else None
        return answer

    def write(
        self, turn: Turn, final: str | None, *, audit: bool, patient: bool = True
    ) -> tuple[int, Mapping[str, Any]]:
        """Make the turn durable once; what was kept under its id before, if anything, is what counts."""
        plan, store = self.auditor.plan, self.auditor.store
        new = body(turn, plan.values.name, self.models, final)
        number, before = store.add(new, plan.values_id, plan.log, audit=audit, patient=patient)
        if before is not None:
            check_same(before, turn)
            return number, before
        self.auditor.submit(Job(turn["id"], turn["key"], plan.log, audit))
        return number, new
