"""Split an agent's model reply into text, tool calls and structured output, and build the message that leaves."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from langchain.agents.middleware import ModelResponse, ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langgraph.types import Command

from safi_agent.agents.signatures import VerdictSigner
from safi_agent.agents.tools import UNKNOWN, iter_texts
from safi_agent.tool_calls import as_json, call_text, is_opaque, tool_call
from safi_agent.turn import Draft, Turn, Verdict

# Block types that providers need back with tool calls; other blocks do not leave.
_THOUGHT = ("thinking", "redacted_thinking", "reasoning")
# Keys of opaque data, which only the provider can read.
_OPAQUE = ("type", "id", "index", "signature", "encrypted_content", "data")
_KEYS = (*_OPAQUE, "thinking", "reasoning", "summary", "text", "content", "extras", "status")
BROKEN = Verdict("violation", "The arguments could not be read.", "arguments_unreadable")
SAME_ID = Verdict("violation", "Each call needs an id of its own.", "call_id")
UNVERIFIED = Verdict("violation", "", "mark_unverified")
STRUCTURED = "structured"  # the code of calls that produce structured output, which is judged as an answer
NOT_MADE = "This call was not made. "
SIGNATURES = "__gemini_function_call_thought_signatures__"
Verdicts = Mapping[str, Verdict]


class Reply(NamedTuple):
    """The parts of a reply; ``words`` is all text that would leave beside the calls, which the Will has to judge.

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
        """Whether it is an answer and not an intermediate step."""
        return self.structured is not None or not (self.calls or self.notes)


def read_reply(response: ModelResponse[Any], draft: Draft) -> Reply:
    """Split the response of a model call; calls that cannot be parsed are kept without their arguments."""
    message = model_message(response)
    notes = [m for m in response.result if isinstance(m, ToolMessage)]  # for calls that produce structured output
    noted = {note.tool_call_id for note in notes}
    unread: list[ToolCall] = [tool_call(c.get("name") or UNKNOWN, {}, c.get("id")) for c in message.invalid_tool_calls]
    calls = [tool_call(c["name"], c["args"], c["id"]) for c in message.tool_calls if c["id"] not in noted] + unread
    ids = [call["id"] for call in calls]
    broken = {str(call["id"]): BROKEN for call in unread} | {str(i): SAME_ID for i in ids if ids.count(i) > 1}
    structured_args = [c["args"] for c in message.tool_calls if c["id"] in noted]
    # A note repeats the output or its validation error, and the id of its call.
    parts = [draft.answer, *map(as_json, structured_args), *(call_id for call_id in noted if not is_opaque(call_id))]
    if response.structured_response is None and (calls or notes):
        parts += _strings(_thoughts(message))
    words = "\n\n".join(part for part in parts if part.strip())
    decoded = tuple(iter_texts([*structured_args, response.structured_response]))
    return Reply(message, draft.answer, words, calls, broken, notes, response.structured_response, decoded)


def model_message(response: ModelResponse[Any]) -> AIMessage:
    """The model's message in the response of a model call."""
    return next(message for message in response.result if isinstance(message, AIMessage))


def _thoughts(message: AIMessage) -> list[Any]:
    blocks = message.content if isinstance(message.content, list) else []
    return [block for block in blocks if isinstance(block, dict) and block.get("type") in _THOUGHT]


def _strings(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, Mapping):
        for key, inner in item.items():
            if key not in _KEYS:
                yield str(key)
            if key not in _OPAQUE or not is_opaque(inner):
                yield from _strings(inner)
    elif isinstance(item, Sequence):
        for inner in item:
            yield from _strings(inner)


def outgoing_message(
    reply: Reply,
    calls: Sequence[tuple[ToolCall, dict[str, str]]],
    metadata: Mapping[str, Any],
    usage: UsageMetadata | None,
    name: str | None,
) -> AIMessage:
    """The message that leaves: the judged text, and the calls with signed verdicts, verified when the calls run."""
    marks = {str(call["id"]): mark for call, mark in calls}
    thoughts = [] if reply.structured is not None else _thoughts(reply.message)
    text: list[str | dict[Any, Any]] = [{"type": "text", "text": reply.text}] if reply.text else []
    return AIMessage(
        [*thoughts, *text] if thoughts else reply.text,
        id=f"safi-{uuid4()}",
        name=name,
        tool_calls=[call for call, _ in calls],
        additional_kwargs=_signatures(reply.message),
        response_metadata={"safi": {**metadata, **({"calls": marks} if marks else {})}},
        usage_metadata=usage,
    )


def signed_calls(
    turn: Turn, reply: Reply, verdicts: Verdicts, tool_names: Container[str], signer: VerdictSigner
) -> list[tuple[ToolCall, dict[str, str]]]:
    """The calls that leave, each with its signed verdict; denied calls have no arguments.

    A name that is not in ``tool_names`` is left out too.
    """
    noted = {note.tool_call_id for note in reply.notes}
    structured = [tool_call(c["name"], c["args"], c["id"]) for c in reply.message.tool_calls if c["id"] in noted]
    ruled = [(call, Verdict("approve", "", STRUCTURED)) for call in structured]
    for call in reply.calls:
        verdict = verdicts[str(call["id"])]
        ruled.append((call if verdict.decision == "approve" else _withheld(call, tool_names), verdict))
    return [(call, signer.sign(turn, call, verdict)) for call, verdict in ruled]


def _withheld(call: ToolCall, tool_names: Container[str]) -> ToolCall:
    return {**call, "args": {}, "name": call["name"] if call["name"] in tool_names else UNKNOWN}


def _signatures(message: AIMessage) -> dict[str, Any]:
    """Opaque data that a provider needs back with the calls, without any readable text."""
    signatures = message.additional_kwargs.get(SIGNATURES)
    if not isinstance(signatures, Mapping):
        return {}
    ids = {call["id"] for call in message.tool_calls}
    return {SIGNATURES: {key: item for key, item in signatures.items() if key in ids and is_opaque(item)}}


def call_draft(call: ToolCall) -> Draft:
    """A call as a draft for the rules and the judge; patterns are also searched in each of its texts."""
    return Draft(call_text(call), texts=(call["name"], *iter_texts(call["args"])))


def signed_verdict_of(messages: Sequence[AnyMessage], call: ToolCall) -> object:
    """The unverified signed verdict of a call in the agent's state; None if there is none."""
    for message in reversed(messages):
        calls = [c for c in message.tool_calls if c["id"] == call["id"]] if isinstance(message, AIMessage) else []
        if calls:
            return signed_verdicts(message).get(call["id"]) if len(calls) == 1 else None
    return None


def signed_verdicts(message: BaseMessage) -> Mapping[Any, Any]:
    """The unverified signed verdicts of a message's calls by id; empty if there are none."""
    marks = safi_metadata(message).get("calls")
    return marks if isinstance(marks, Mapping) else {}


def safi_metadata(message: BaseMessage) -> dict[str, Any]:
    """The unverified ``safi`` metadata of a message; empty if there is none."""
    metadata = message.response_metadata.get("safi")
    return dict(metadata) if isinstance(metadata, Mapping) else {}


def denial_message(turn: Turn, call: ToolCall, verdict: Verdict, signer: VerdictSigner) -> ToolMessage:
    """The tool message that replaces the result of a denied call."""
    mark = signer.sign(turn, call, verdict)
    metadata = {"safi": {name: mark[name] for name in ("decision", "code", "signature")}}
    name, call_id = call["name"], str(call["id"])
    return ToolMessage(
        NOT_MADE + verdict.reason, name=name, tool_call_id=call_id, status="error", response_metadata=metadata
    )


def read_denial(turn: Turn, call: ToolCall, message: ToolMessage, signer: VerdictSigner) -> Verdict | None:
    """The verdict of a denial message; None if it is no denial of this call, or was changed."""
    text = message.content
    if not isinstance(text, str) or not text.startswith(NOT_MADE):
        return None
    return signer.verify(turn, call, {**safi_metadata(message), "reason": text.removeprefix(NOT_MADE)})


def is_answer(request: ToolCallRequest) -> bool:
    """Whether the call's result is to be the agent's answer."""
    return bool(request.tool is not None and request.tool.return_direct)


def ends_run(request: ToolCallRequest) -> bool:
    """Whether the agent ends with this call's result: the last of a step in which all calls' results are answers."""
    answers = [message for message in request.state["messages"] if isinstance(message, AIMessage)]
    tools = [*getattr(request.runtime, "tools", ()), request.tool]
    direct = {tool.name: tool.return_direct for tool in tools if tool is not None}
    calls = [call for call in answers[-1].tool_calls if call["name"] in direct] if answers else []
    return bool(calls) and all(direct[c["name"]] for c in calls) and calls[-1]["id"] == request.tool_call["id"]


def result_text(result: ToolMessage | Command[Any]) -> str:
    """The text of a tool's result; empty for a Command, which has no text to judge and is refused."""
    return str(result.text) if isinstance(result, ToolMessage) else ""


def governed_result(name: str | None, call_id: str, answer: AIMessage) -> ToolMessage:
    """The answer as the tool message of the call."""
    metadata = answer.response_metadata
    return ToolMessage(str(answer.text), name=name, tool_call_id=call_id, response_metadata=metadata)


def tool_records(turn: Turn, messages: Sequence[AnyMessage], signer: VerdictSigner) -> list[dict[str, str]]:
    """The verdict on each call since the user's last message, for the record.

    A call without a valid signed verdict of this run is "unverified": something else has added or changed it. It was
    checked when it was made, but the state has no reliable record of that verdict.
    """
    last = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=-1)
    records: dict[str, dict[str, str]] = {}
    calls: dict[str, ToolCall] = {}
    for message in messages[last + 1 :]:
        if isinstance(message, AIMessage):
            for call in message.tool_calls:
                verdict = signer.verify(turn, call, signed_verdicts(message).get(call["id"])) or UNVERIFIED
                if verdict.code != STRUCTURED:
                    calls[str(call["id"])] = call
                    records[str(call["id"])] = {"name": call["name"], **_shown(verdict)}
        elif isinstance(message, ToolMessage) and message.tool_call_id in records:
            denial = read_denial(turn, calls[message.tool_call_id], message, signer)
            records[message.tool_call_id] |= _shown(denial) if denial else {}
    return list(records.values())


def _shown(verdict: Verdict) -> dict[str, str]:
    decision = "unverified" if verdict is UNVERIFIED else verdict.decision
    return {"decision": decision, "code": verdict.code}
