"""Will: approve a draft or refuse it. Rules come first, then a judge; an unclear ruling is a violation."""

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig

from safi_agent.faculties.base import Faculty
from safi_agent.faculties.fence import CLAUSE, fence
from safi_agent.faculties.intellect import values_prompt
from safi_agent.faculties.judge import Judge, JudgeReply
from safi_agent.faculties.template import render
from safi_agent.parsing import casefold_keys
from safi_agent.patterns import search
from safi_agent.tool_calls import FAULTS
from safi_agent.turn import ENDLESS, TRUNCATED, Draft, Turn, Verdict
from safi_agent.unicode_text import plain, visible
from safi_agent.values import ValueSet, label

log = logging.getLogger("safi_agent")
REPLY = """Reply with one JSON object and nothing else:
{"decision": "approve" or "violation", "reason": "one sentence"{rulings}}"""
SYSTEM = """You are the Will: you decide whether a drafted answer may be given to the user. Approve it only if it \
breaks none of these values; a polite refusal to the user breaks none. When in doubt: violation.

{values}
{gates}
{fences} The reflection is the draft's author speaking for it; weigh it as such.{agreement}

{reply}"""
PLACEHOLDERS = ("values", "gates", "fences", "agreement", "reply")
CALL_SYSTEM = """You are the Will: you decide whether an agent may make the tool call that it drafted for the user. \
Approve it only if it serves what the user asked for and breaks none of these values. When in doubt: violation.

{values}
{gates}
{fences}

{reply}"""
CALL_PLACEHOLDERS = ("values", "gates", "fences", "reply")
RULINGS = ', "gates": [{"value": "name", "upheld": true}]'
GATES = 'Hard gates, each of which needs its own ruling in "gates": {names}.'
AGREEMENT = (
    " The draft was chosen from {drafts} that its author wrote independently of each other; of these, {percent} % say "
    "much the same, itself among them. Where few do, its author is unsure."
)
SCHEMA: dict[str, Any] = {
    "title": "verdict",
    "description": "Whether the draft may be given to the user.",
    "type": "object",
    "properties": {
        "decision": {"type": "string", "enum": ["approve", "violation"]},
        "reason": {"type": "string"},
        "gates": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"value": {"type": "string"}, "upheld": {"type": "boolean"}},
                "required": ["value", "upheld"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["decision", "reason", "gates"],
    "additionalProperties": False,
}
WITHOUT_GATES = SCHEMA | {
    "properties": {name: SCHEMA["properties"][name] for name in ("decision", "reason")},
    "required": ["decision", "reason"],
}
JUDGE_FAILED = "judge_failed"  # the code of the verdict if the judge's model failed
UNCLEAR = Verdict("violation", "The judge's ruling was unclear.", "judge_unclear")
_KEYS = {"decision", "reason", "gates"}
APPROVED_BY_RULES = Verdict("approve", "", "rules")
UNFINISHED = Verdict("violation", "The pattern search did not finish in time.", "pattern_unfinished")
PATTERN_SECONDS = 1.0  # for all patterns of a value set
# Limits for work on the caller's event loop: characters, and seconds of pattern search.
INLINE_CHARS = 4_000
INLINE_SECONDS = 0.005


def schema(values: ValueSet) -> dict[str, Any]:
    """The schema of the judge's reply, with rulings on hard gates if there are any."""
    return SCHEMA if values.gates else WITHOUT_GATES


def rules(draft: Draft, values: ValueSet, min_agreement: float = 0) -> Verdict | None:
    """The verdict of the rules; None if no rule objects. The pattern search is limited to ``PATTERN_SECONDS``.

    Vetoes and forbidden patterns are searched in the answer and in each of the draft's ``texts``.
    """
    try:
        return _rules(draft, values, min_agreement, PATTERN_SECONDS)
    except PatternTimeoutError as error:
        log.warning("A pattern search took over %g s; the draft is refused: %r", PATTERN_SECONDS, error.pattern)
        return UNFINISHED


def rules_within_budget(draft: Draft, values: ValueSet, min_agreement: float = 0) -> Verdict | None:
    """``rules`` with a short time limit, for use on an event loop.

    Raises:
        PatternTimeoutError: the draft has over ``INLINE_CHARS`` characters, or the search took over ``INLINE_SECONDS``.
    """
    if sum(map(len, (draft.answer, *draft.texts))) > INLINE_CHARS:
        raise PatternTimeoutError("")
    return _rules(draft, values, min_agreement, INLINE_SECONDS)


async def arules(draft: Draft, values: ValueSet, min_agreement: float = 0) -> Verdict | None:
    """Asynchronous version: inline, or on a thread, where ``regex`` releases the GIL."""
    try:
        return rules_within_budget(draft, values, min_agreement)
    except PatternTimeoutError:
        return await asyncio.to_thread(rules, draft, values, min_agreement)


class PatternTimeoutError(Exception):
    """The search for a pattern did not end in time."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self.pattern = pattern


def _rules(draft: Draft, values: ValueSet, min_agreement: float, seconds: float) -> Verdict | None:
    text = draft.answer
    if max(len(part) for part in (text, *draft.texts)) > values.max_chars:  # before the text is processed
        return Verdict("violation", f"The draft has over {values.max_chars} characters.", "structure_length")
    if not visible(text).strip():
        return Verdict("violation", "The draft is empty.", "structure_empty")
    if (matched := _matched(draft, values, seconds)) is not None:
        return matched
    if not draft.calls and any(required not in text for required in values.disclaimers):
        return Verdict("violation", "A required disclaimer is missing.", "disclaimer_missing")
    if draft.agreement is not None and draft.agreement < min_agreement:
        return Verdict("violation", f"Only {draft.agreement:.0%} of the drafts agree.", "agreement_low")
    return None


def _matched(draft: Draft, values: ValueSet, seconds: float) -> Verdict | None:
    """The verdict on a draft that matches a pattern; None if none matches.

    Raises:
        PatternTimeoutError: the search for all patterns took longer than ``seconds``.
    """
    until = time.thread_time() + seconds
    readings: list[str] = []
    for pattern, verdict in _patterns(values):
        readings = readings or _readings(draft)
        try:
            if search(pattern, readings, until):
                return verdict
        except TimeoutError:
            raise PatternTimeoutError(pattern) from None
    return None


def _patterns(values: ValueSet) -> Iterator[tuple[str, Verdict]]:
    for value in values.values:
        for pattern in value.vetoes:
            yield pattern, Verdict("violation", f"The draft matches a veto of {value.name}.", "hard_veto")
    for pattern in values.forbidden:
        yield pattern, Verdict("violation", "The draft matches a forbidden pattern.", "forbidden_pattern")


def _readings(draft: Draft) -> list[str]:
    """The draft's texts, unchanged and normalized."""
    texts = (draft.answer, *draft.texts)
    return list(dict.fromkeys(form for text in texts for form in (text, visible(text), plain(text))))


def read_verdict(data: Any, values: ValueSet) -> Verdict:
    """The judge's ruling; a violation unless it clearly approves and upholds every hard gate.

    Clear is an object with a decision, a reason that is not blank and, if it has them, rulings on gates, under keys in
    any case; another key, or one in two spellings, might hold another ruling, so the object is unclear.
    """
    fields = casefold_keys(data) if isinstance(data, dict) else None
    if fields is None or not set(fields) <= _KEYS:
        return UNCLEAR
    decision, reason = fields.get("decision"), fields.get("reason")
    ruling = decision.strip().casefold() if isinstance(decision, str) else ""
    if ruling not in ("approve", "violation") or not isinstance(reason, str) or not plain(reason).strip():
        return UNCLEAR
    if ruling == "violation":
        return Verdict("violation", reason)
    upheld = _gates(fields.get("gates"))
    if upheld is None:
        return UNCLEAR
    for gate in values.gates:
        if gate.key not in upheld:
            return Verdict("violation", f"The judge did not rule on {gate.name}.", "hard_gate_unscored")
        if not upheld[gate.key]:
            return Verdict("violation", f"{gate.name}: {reason}", "hard_gate_violation")
    return Verdict("approve", reason) if all(upheld.values()) else UNCLEAR


def _gates(rows: Any) -> dict[str, bool] | None:
    """Rulings by normalized name; only true upholds, and the worse of two rulings counts. None: unclear."""
    ruled: dict[str, bool] = {}
    if not isinstance(rows, list):
        return ruled if rows is None else None
    for row in rows:
        fields = casefold_keys(row) if isinstance(row, dict) else None
        if fields is None or not isinstance(fields.get("value"), str):
            return None
        key = label(fields["value"])
        ruled[key] = ruled.get(key, True) and fields.get("upheld") is True
    return ruled


@dataclass(frozen=True, eq=False)
class Will(Faculty):
    """Adds ``verdict``. It never raises: an exception of its judge is a violation.

    Without a judge, drafts are approved unless a rule objects.
    """

    judge: Judge | None
    values: ValueSet
    show_reflection: bool = True
    system_prompt: str = SYSTEM  # another prompt needs the same placeholders, except {agreement}
    call_prompt: str = CALL_SYSTEM  # for a draft with calls of a chain's model
    min_agreement: float = 0
    refuse_truncated: bool = False

    output_key = "verdict"
    span_name = "Will"

    def compute(self, turn: Turn, config: RunnableConfig) -> Verdict:
        """Rules, then the judge."""
        draft = turn["draft"]
        ruled = self._check_flags(draft) or rules(draft, self.values, self.min_agreement)
        if ruled is not None or self.judge is None:
            return ruled or APPROVED_BY_RULES
        try:
            answer = self.judge.ask(self._messages(turn), self._read, config)
        except Exception as error:
            return _judge_failure(error)
        return _verdict(answer)

    async def acompute(self, turn: Turn, config: RunnableConfig) -> Verdict:
        """Asynchronous version; long texts are processed on a thread."""
        draft = turn["draft"]
        ruled = self._check_flags(draft) or await arules(draft, self.values, self.min_agreement)
        if ruled is not None or self.judge is None:
            return ruled or APPROVED_BY_RULES
        try:
            length = sum(map(len, (turn["prompt"], turn["context"], draft.answer, draft.reflection)))
            messages = await asyncio.to_thread(self._messages, turn) if length > INLINE_CHARS else self._messages(turn)
            answer = await self.judge.aask(messages, self._read, config)
        except Exception as error:
            return _judge_failure(error)
        return _verdict(answer)

    def _check_flags(self, draft: Draft) -> Verdict | None:
        """The verdict that follows from the draft's flags; None if there is none."""
        if ENDLESS in draft.flags:
            return Verdict("violation", "The draft's reasoning does not end.", ENDLESS)
        for code, reason in FAULTS.items():
            if code in draft.flags:
                return Verdict("violation", reason, code)
        if self.refuse_truncated and TRUNCATED in draft.flags:
            return Verdict("violation", "The draft was cut off.", TRUNCATED)
        return None

    def _read(self, data: Any) -> Verdict:
        return read_verdict(data, self.values)

    def _messages(self, turn: Turn) -> list[BaseMessage]:
        gates = GATES.replace("{names}", "; ".join(v.name for v in self.values.gates)) if self.values.gates else ""
        parts = {
            "values": values_prompt(self.values),
            "gates": gates,
            "fences": CLAUSE,
            "agreement": _agreement(turn["draft"]),
            "reply": REPLY.replace("{rulings}", RULINGS if self.values.gates else ""),
        }
        system = render(self.call_prompt if turn["draft"].calls else self.system_prompt, parts)
        texts = [("context", turn["context"]), ("user_prompt", turn["prompt"]), ("draft", turn["draft"].answer)]
        if self.show_reflection:
            texts.append(("reflection", turn["draft"].reflection))
        return [SystemMessage(system), HumanMessage("\n\n".join(fence(name, text) for name, text in texts))]


def _agreement(draft: Draft) -> str:
    """The sentence about several drafts for the judge; empty for one draft."""
    if draft.agreement is None:
        return ""
    return AGREEMENT.replace("{drafts}", str(draft.drafts)).replace("{percent}", f"{100 * draft.agreement:.0f}")


def _verdict(answer: JudgeReply[Verdict]) -> Verdict:
    return (answer.found or UNCLEAR)._replace(usage=answer.usage, model=answer.model)


def _judge_failure(error: Exception) -> Verdict:
    log.warning("The Will's judge raised; the draft is refused.", exc_info=error)
    return Verdict("violation", f"The judge's model failed ({type(error).__name__}).", JUDGE_FAILED)
