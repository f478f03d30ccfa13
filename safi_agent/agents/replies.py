"""A model's reply inside an agent: what of it are words, what are calls, and what of it may leave."""

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from langchain.agents.middleware import ModelResponse, ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langgraph.types import Command

from safi_agent.agents.tools import UNKNOWN, shown, texts
from safi_agent.turn import Draft, Verdict

# What providers want back of a reply that calls tools; a block of another kind does not leave.
_THOUGHT = ("thinking", "redacted_thinking", "reasoning")
# Where they keep what is no words: nobody can judge it, and only the provider can read it.
_OPAQUE = ("type", "id", "index", "signature", "encrypted_content", "data")
BROKEN = Verdict("violation", "The arguments could not be read.", "arguments_unreadable")
SAME_ID = Verdict("violation", "Each call needs an id of its own.", "call_id")
Verdicts = Mapping[str, Verdict]


class Reply(NamedTuple):
    """A reply taken apart; ``words`` are all that would leave beside calls, and what the Will has to judge.

    ``texts`` are the texts in its structured output, decoded.
    """

    message: AIMessage
    text: str
    words: str
    calls: list[ToolCall]
    broken: dict[str, Verdict]
    notes: list[ToolMessage]
    structured: Any
    texts: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        """Whether it is an answer, not a step on the way to one."""
        return self.structured is not None or not (self.calls or self.notes)


def read_reply(response: ModelResponse[Any], draft: Draft) -> Reply:
    """Take apart what a model call came to; calls that cannot be read are kept as calls, without their arguments."""
    message = answer_of(response)
    notes = [m for m in response.result if isinstance(m, ToolMessage)]  # on calls that make structured output
    noted = {note.tool_call_id for note in notes}
    unread: list[ToolCall] = [_call(c.get("name") or UNKNOWN, {}, c.get("id")) for c in message.invalid_tool_calls]
    calls = [_call(c["name"], c["args"], c["id"]) for c in message.tool_calls if c["id"] not in noted] + unread
    ids = [call["id"] for call in calls]
    broken = {str(call["id"]): BROKEN for call in unread} | {str(i): SAME_ID for i in ids if ids.count(i) > 1}
    made = [c["args"] for c in message.tool_calls if c["id"] in noted]
    said = [draft.answer, *map(_json, made)]  # a note says again what was made, or what of it does not fit
    if response.structured_response is None and (calls or notes):
        said += _strings(_thoughts(message))
    words = "\n\n".join(part for part in said if part.strip())
    decoded = tuple(texts([*made, response.structured_response]))
    return Reply(message, draft.answer, words, calls, broken, notes, response.structured_response, decoded)


def answer_of(response: ModelResponse[Any]) -> AIMessage:
    """The model's message among those that a model call came to."""
    return next(message for message in response.result if isinstance(message, AIMessage))


def _call(name: str, args: dict[str, Any], call_id: str | None) -> ToolCall:
    return ToolCall(name=name, args=args, id=call_id or f"call-{uuid4().hex}", type="tool_call")


def _thoughts(message: AIMessage) -> list[Any]:
    blocks = message.content if isinstance(message.content, list) else []
    return [block for block in blocks if isinstance(block, dict) and block.get("type") in _THOUGHT]


def _strings(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, Mapping):
        for key, inner in item.items():
            if key not in _OPAQUE:
                yield from _strings(inner)
    elif isinstance(item, Sequence):
        for inner in item:
            yield from _strings(inner)


def leaving(
    reply: Reply, verdicts: Verdicts, known: Container[str], told: Mapping[str, Any], usage: UsageMetadata | None
) -> AIMessage:
    """The message that leaves: the judged text, and the calls; those that may not be made have no arguments.

    A name that is not ``known`` is left out too. What the verdicts were is told in its metadata, for whoever runs the
    calls, now or after a restart.
    """
    noted = {note.tool_call_id for note in reply.notes}
    calls = [c for c in reply.message.tool_calls if c["id"] in noted] if noted else []
    marks = {call_id: {"decision": v.decision, "code": v.code, "reason": v.reason} for call_id, v in verdicts.items()}
    thoughts = [] if reply.structured is not None else _thoughts(reply.message)
    text: list[str | dict[Any, Any]] = [{"type": "text", "text": reply.text}] if reply.text else []
    return AIMessage(
        [*thoughts, *text] if thoughts else reply.text,
        id=reply.message.id,
        name=reply.message.name,
        tool_calls=[*calls, *(_withheld(call, verdicts[str(call["id"])], known) for call in reply.calls)],
        additional_kwargs={k: v for k, v in reply.message.additional_kwargs.items() if "signature" in k},
        response_metadata={"safi": {**told, **({"calls": marks} if marks else {})}},
        usage_metadata=usage,
    )


def _withheld(call: ToolCall, verdict: Verdict, known: Container[str]) -> ToolCall:
    if verdict.decision == "approve":
        return call
    return {**call, "args": {}, "name": call["name"] if call["name"] in known else UNKNOWN}


def call_text(call: ToolCall) -> str:
    """A call as a judge reads it, in JSON; arguments that JSON cannot write are there as a list of their texts."""
    try:
        return _json({"tool": call["name"], "arguments": call["args"]})
    except (TypeError, ValueError, RecursionError):
        return _json({"tool": call["name"], "arguments": list(texts(call["args"]))})


def call_draft(call: ToolCall) -> Draft:
    """A call as the rules and a judge are given it; patterns are tried on its texts one by one, too."""
    return Draft(call_text(call), texts=(call["name"], *texts(call["args"])))


def _json(item: object) -> str:
    return json.dumps(item, ensure_ascii=False, default=shown)


def mark_of(messages: Sequence[AnyMessage], call: ToolCall) -> Verdict | None:
    """What was ruled on exactly this call when it left; None where nothing was, or another hand has changed it."""
    for message in reversed(messages):
        made = [c for c in message.tool_calls if c["id"] == call["id"]] if isinstance(message, AIMessage) else []
        if made:
            mark = told_of(message).get("calls", {}).get(call["id"])
            same = len(made) == 1 and (made[0]["name"], made[0]["args"]) == (call["name"], call["args"])
            return Verdict(mark["decision"], mark["reason"], mark["code"]) if mark and same else None
    return None


def told_of(message: BaseMessage) -> dict[str, Any]:
    """What a message's metadata says of its governing; empty where nothing."""
    return dict(message.response_metadata.get("safi") or {})


def denied(call: ToolCall, verdict: Verdict) -> ToolMessage:
    """What the model is told in place of a result."""
    text = f"This call was not made. {verdict.reason}"
    told = {"safi": {"decision": "violation", "code": verdict.code}}
    name, call_id = call["name"], str(call["id"])
    return ToolMessage(text, name=name, tool_call_id=call_id, status="error", response_metadata=told)


def is_answer(request: ToolCallRequest) -> bool:
    """Whether the call's result is to be the agent's answer."""
    return bool(request.tool is not None and request.tool.return_direct)


def result_text(result: ToolMessage | Command[Any]) -> str:
    """What a tool's result says; a command says nothing that could be judged, and what is empty is refused."""
    return str(result.text) if isinstance(result, ToolMessage) else ""


def governed_result(call: ToolCall, answer: AIMessage) -> ToolMessage:
    """The answer in the place of the call's result."""
    told = answer.response_metadata
    return ToolMessage(str(answer.text), name=call["name"], tool_call_id=str(call["id"]), response_metadata=told)


def journal(messages: Sequence[AnyMessage]) -> list[dict[str, str]]:
    """What was ruled on each call since the user last spoke, for the record."""
    last = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=-1)
    found: dict[str, dict[str, str]] = {}
    for message in messages[last + 1 :]:
        if isinstance(message, AIMessage):
            names = {call["id"]: call["name"] for call in message.tool_calls}
            for call_id, mark in told_of(message).get("calls", {}).items():
                found[call_id] = {"name": names[call_id], "decision": mark["decision"], "code": mark["code"]}
        elif isinstance(message, ToolMessage) and message.tool_call_id in found and "code" in told_of(message):
            found[message.tool_call_id] |= {"decision": "violation", "code": told_of(message)["code"]}
    return list(found.values())
