"""Release: make the turn durable, then return the approved answer or the fixed refusal."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import RunnableConfig

from safi_agent.audit import AuditBranch
from safi_agent.errors import SafiError
from safi_agent.faculties.base import Faculty
from safi_agent.faculties.will import JUDGE_FAILED
from safi_agent.offline_model import LABEL
from safi_agent.record import turn_body
from safi_agent.redaction import Redact, redact_body, redacted
from safi_agent.sampling import (
    EVERY_ANSWER,
    NO_DRAFT,
    REFUSED,
    TOOL_CALLS,
    AuditChoice,
    Sampler,
    is_audited,
    record_fields,
)
from safi_agent.store import Job
from safi_agent.telemetry.metrics import record_decision
from safi_agent.telemetry.spans import record_release, trace_context
from safi_agent.turn import Turn, Verdict
from safi_agent.values import ValueSet

WillMode = Literal["enforce", "shadow"]  # whether a refused draft is withheld, or leaves and is recorded
SHADOW = "shadow"  # the flag of each turn in shadow mode
RefusedRecord = Literal["minimal", "full"]  # what is stored of a refused draft
# The flags that the caller gets: verdicts without a judge's ruling, on incomplete input, or not enforced.
PUBLIC_FLAGS = frozenset({JUDGE_FAILED, "judge_unclear", "draft_truncated", "not_shown", SHADOW, LABEL})

log = logging.getLogger("safi_agent")
_warned: set[str] = set()  # value sets whose shadow mode was reported


def warn_of_shadow_mode(value_set: str) -> None:
    """Log once in each process that the answers of this value set are not withheld."""
    if value_set not in _warned:
        _warned.add(value_set)
        log.warning(
            "Shadow mode: answers under %r leave even if the Will refuses them. Set will_mode='enforce' to withhold "
            "them.",
            value_set,
        )


def is_refusal(metadata: Mapping[str, Any]) -> bool:
    """Whether an answer with this metadata is a refusal, and not a draft that has left in shadow mode."""
    return metadata["willDecision"] == "violation" and SHADOW not in metadata["flags"]


def refusal_text(values: ValueSet, outage_message: str | None = None) -> str:
    """The fixed refusal text, which depends on neither the prompt nor the draft, or ``outage_message`` in its place."""
    refusal = values.refusal if outage_message is None else outage_message
    return "\n\n".join([refusal, *(text for text in values.disclaimers if text not in refusal)])


def answer_message(body: Mapping[str, Any], number: int) -> AIMessage:
    """The answer's message, without anything that preceded it."""
    metadata = {
        "turn": number,
        "turnId": body["id"],
        "willDecision": body["decision"],
        "auditStatus": "pending" if is_audited(body["auditReason"]) else "none",
        "valueSet": body["valueSet"],
        "memoryKey": body["key"],
        "models": body["models"],
        "flags": [flag for flag in dict.fromkeys(body["flags"]) if flag in PUBLIC_FLAGS],
    }
    step = body.get("toolCalls") or {"text": body["final"], "calls": []}
    more = {"id": f"safi-{body['id']}", "response_metadata": {"safi": metadata}}
    return AIMessage(step["text"], tool_calls=step["calls"], **more)


def _is_refused(body: Mapping[str, Any]) -> bool:
    return is_refusal({"willDecision": body["decision"], "flags": body["flags"]})


def is_same_turn(body: Mapping[str, Any], turn: Mapping[str, Any]) -> bool:
    """Whether the stored turn of the same id is this turn; one that was erased is not known to be."""
    if "erased" in body:
        return False
    if name := body.get("asked"):
        return bool(name == turn.get("asked"))
    # The stored turn had no safi_turn_id.
    return (body["prompt"], body["key"]) == (turn["prompt"], turn["key"])


def with_spare_id(turn: Turn) -> Turn:
    """The turn with its spare id, because its id belongs to another turn.

    Raises:
        ValueError: the turn has no spare id.
    """
    if not turn.get("spare"):
        raise ValueError(
            f"safi_turn_id: expected a new id for a different prompt or memory key, got {turn['id']!r} again."
        )
    return {**turn, "id": turn["spare"], "asked": turn["spare"], "spare": ""}


@dataclass(frozen=True, eq=False)
class Release(Faculty):
    """Adds ``answer``. Raises OutboxError or RedactionError if the turn cannot be written, and returns no answer."""

    auditor: AuditBranch
    models: Mapping[str, str]
    redact: Redact | None = None
    refused: RefusedRecord = "minimal"
    outage_message: str | None = None
    will_mode: WillMode = "enforce"
    sampler: Sampler = field(default_factory=lambda: Sampler(EVERY_ANSWER, ""))

    output_key = "answer"

    def compute(self, turn: Turn, config: RunnableConfig) -> AIMessage:
        """Store the turn, submit it for audit, and return the answer."""
        leaves = self.lets_out(turn["verdict"])
        if not leaves:
            final = self._refusal(turn["verdict"])
        elif turn["draft"].calls and turn["verdict"].decision == "violation":
            final = turn["draft"].said  # in shadow mode: a call cannot be taken back
        else:
            final = turn["draft"].answer
        number, body = self.write(turn, final)
        record_release(turn, final)
        answer = answer_message(body, number)
        answer.usage_metadata = add_usage(turn["draft"].usage, turn["verdict"].usage) if turn["draft"].usage else None
        return answer

    def lets_out(self, verdict: Verdict) -> bool:
        """Whether the draft leaves: if the Will has approved it, and in shadow mode in any case."""
        return verdict.decision == "approve" or self.will_mode == "shadow"

    def _refusal(self, verdict: Verdict) -> str:
        return refusal_text(self.auditor.plan.values, self.outage_message if verdict.code == JUDGE_FAILED else None)

    async def acompute(self, turn: Turn, config: RunnableConfig) -> AIMessage:
        """Asynchronous version, on a thread because the store is a file or a server.

        A caller that is cancelled meanwhile gets no answer, but the thread continues: the turn is stored, and audited
        if it was approved. A repetition with the same ``safi_turn_id`` returns the answer.
        """
        return await asyncio.to_thread(self.compute, turn, config)

    def enforce(self, answer: AIMessage) -> AIMessage:
        """The answer; the refusal in place of a stored one that has left in shadow mode, where drafts are withheld."""
        metadata = answer.response_metadata["safi"]
        has_left = metadata["willDecision"] == "violation" and SHADOW in metadata["flags"]
        if self.will_mode == "shadow" or not has_left:
            return answer
        told = {**metadata, "flags": [flag for flag in metadata["flags"] if flag != SHADOW]}
        return AIMessage(refusal_text(self.auditor.plan.values), id=answer.id, response_metadata={"safi": told})

    def as_stored(self, item: Any) -> Any:
        """A content as ``write`` stores it, to be compared with stored ones.

        Raises:
            RedactionError: ``redact`` failed.
        """
        return item if self.redact is None else redacted(item, self.redact)

    def record_failure(self, turn: Turn) -> None:
        """Log a turn for which the Intellect returned no draft, under a separate id, so that it can be repeated."""
        with suppress(SafiError):
            self.write({**turn, "id": str(uuid4())}, None)

    def _choose(self, body: Mapping[str, Any]) -> AuditChoice:
        if body["decision"] is None:
            return NO_DRAFT
        if _is_refused(body):
            return REFUSED
        if "toolCalls" in body:
            return TOOL_CALLS
        return self.sampler.choose(body["id"], body["prompt"], refused=body["decision"] == "violation")

    def write(self, turn: Turn, final: str | None) -> tuple[int, Mapping[str, Any]]:
        """Store the turn once; an earlier version of the same turn takes precedence.

        Returns:
            The number of the turn, and its body: as it is for a new turn, as it was stored for an earlier one.

        Raises:
            OutboxError: the store failed.
            RedactionError: ``redact`` failed.
            ValueError: its id belongs to another turn, and it has no spare id.
        """
        plan, store = self.auditor.plan, self.auditor.store
        new = turn_body(turn, plan.values.name, self.models, final)
        if self.will_mode == "shadow":
            new["flags"] = [*new["flags"], SHADOW]
        if new["decision"] == "approve" and (calls := turn["draft"].calls):
            new["toolCalls"] = {"text": turn["draft"].said, "calls": [dict(call) for call in calls]}
        choice = self._choose(new)
        new |= {**record_fields(choice), "prompts": plan.prompts.fingerprint}
        if _is_refused(new) and self.refused == "minimal":
            new |= {"draft": None, "reflection": None}
        if trace := trace_context():
            new["trace"] = trace
        stored = new if self.redact is None else redact_body(new, self.redact)
        number, before = store.add_turn(stored, plan.values_id, plan.log, audit=choice.audited)
        if before is not None:
            if is_same_turn(before, stored):
                return number, before
            return self.write(with_spare_id(turn), final)
        self.auditor.submit(Job(turn["id"], turn["key"], plan.log, choice.audited))
        record_decision(plan.values.name, new["decision"], turn["verdict"].code if "verdict" in turn else "")
        return number, new
