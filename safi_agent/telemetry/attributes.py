"""The attributes of spans and events."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata

from safi_agent.ledger import Findings
from safi_agent.turn import Draft, Turn, Verdict

Attributes = dict[str, str | bool | int | float | Sequence[str]]

# The semantic conventions for generative AI.
OPERATION = "gen_ai.operation.name"
WORKFLOW = "gen_ai.workflow.name"
AGENT = "gen_ai.agent.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
EVALUATION = "gen_ai.evaluation.name"
SCORE_VALUE = "gen_ai.evaluation.score.value"
SCORE_LABEL = "gen_ai.evaluation.score.label"
EXPLANATION = "gen_ai.evaluation.explanation"
ERROR_TYPE = "error.type"

# What they have no name for.
TURN_ID = "safi.turn.id"
VALUE_SET = "safi.value_set"
MEMORY_KEY = "safi.memory_key"
DECISION = "safi.decision"
RULE = "safi.rule"
FLAGS = "safi.flags"
REASON = "safi.reason"
REFLECTION = "safi.reflection"
DRAFTS = "safi.drafts"
AGREEMENT = "safi.agreement"
CONFIDENCE = "safi.confidence"
AUDIT_STATUS = "safi.audit.status"
SCORE = "safi.score"
DRIFT = "safi.drift"

FAILED_JUDGE = "judge_failed"  # the code of a verdict on a draft whose judge's model failed


class Described(NamedTuple):
    """The result of a faculty as attributes; ``contents`` are exported only on request."""

    attributes: Attributes
    contents: Attributes
    error: str = ""  #: the type of an error that the faculty has handled


def describe(result: object) -> Described:
    """The attributes of a faculty's result."""
    match result:
        case Draft():
            return _draft(result)
        case Verdict():
            return _verdict(result)
        case Findings():
            return Described({**_model(result.model), **_usage(result.usage)}, {})
    return Described({}, {})


def _draft(draft: Draft) -> Described:
    attributes: Attributes = {**_model(draft.model), **_usage(draft.usage)}
    if draft.flags:
        attributes[FLAGS] = draft.flags
    if draft.agreement is not None:
        attributes |= {DRAFTS: draft.drafts, AGREEMENT: draft.agreement}
    return Described(attributes, {OUTPUT_MESSAGES: _message("assistant", draft.answer), REFLECTION: draft.reflection})


def _verdict(verdict: Verdict) -> Described:
    attributes: Attributes = {DECISION: verdict.decision, RULE: verdict.code}
    error = FAILED_JUDGE if verdict.code == FAILED_JUDGE else ""
    return Described({**attributes, **_model(verdict.model), **_usage(verdict.usage)}, {REASON: verdict.reason}, error)


def answer_attributes(answer: AIMessage) -> Attributes:
    """The attributes of a turn's answer, which its metadata show to the caller too."""
    metadata = answer.response_metadata["safi"]
    attributes: Attributes = {
        TURN_ID: metadata["turnId"],
        RESPONSE_ID: response_id(metadata["turnId"]),
        DECISION: metadata["willDecision"],
    }
    return {**attributes, FLAGS: metadata["flags"]} if metadata["flags"] else attributes


def turn_contents(turn: Turn, final: str) -> Attributes:
    """The contents of a turn that leaves with the text ``final``."""
    return {
        MEMORY_KEY: turn["key"],
        INPUT_MESSAGES: _message("user", turn["prompt"]),
        OUTPUT_MESSAGES: _message("assistant", final),
    }


def record_attributes(record: Mapping[str, Any]) -> Attributes:
    """The Spirit's figures of a record."""
    attributes: Attributes = {
        TURN_ID: record["turnId"],
        VALUE_SET: record["valueSet"],
        AUDIT_STATUS: record["auditStatus"],
    }
    figures = {SCORE: record["spiritScore"], DRIFT: record["drift"]}
    return {
        **attributes,
        **{name: figure for name, figure in figures.items() if figure is not None},
        **({FLAGS: record["flags"]} if record["flags"] else {}),
    }


def evaluation_attributes(row: Mapping[str, Any], *, contents: bool) -> Attributes:
    """The attributes of the event ``gen_ai.evaluation.result`` of a row of the ledger."""
    attributes: Attributes = {
        EVALUATION: row["value"],
        SCORE_VALUE: float(row["score"]),
        SCORE_LABEL: score_label(row["score"]),
        CONFIDENCE: row["confidence"],
    }
    return {**attributes, EXPLANATION: row["reason"]} if contents else attributes


def score_label(score: float) -> str:
    """The label of a score in [−1, 1].

    >>> [score_label(score) for score in (-1, 0, 0.5, 1)]
    ['violated', 'omitted', 'partly affirmed', 'affirmed']
    """
    if score <= 0:
        return "violated" if score < 0 else "omitted"
    return "affirmed" if score == 1 else "partly affirmed"


def response_id(turn_id: str) -> str:
    """The id of the answer's message."""
    return f"safi-{turn_id}"


def _model(name: str) -> Attributes:
    return {RESPONSE_MODEL: name} if name else {}


def _usage(usage: UsageMetadata | None) -> Attributes:
    if usage is None:
        return {}
    return {INPUT_TOKENS: usage["input_tokens"], OUTPUT_TOKENS: usage["output_tokens"]}


def _message(role: str, text: str) -> str:
    """A message in the JSON schema of the conventions."""
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])
