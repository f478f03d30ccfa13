"""The agent's final answer, compared with the released one: the agent's state may have been edited in between."""

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import NAMESPACE_OID, uuid5

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from pydantic_core import to_jsonable_python

from safi_agent.agents.replies import read_denial, safi_metadata
from safi_agent.agents.signatures import VerdictSigner
from safi_agent.release import answer_message
from safi_agent.turn import Turn

Answered = Callable[[str], tuple[int, Mapping[str, Any]] | None]

AsStored = Callable[[Any], Any]


class FinalAnswer(NamedTuple):
    """The last message, unless it is a user's, and the structured response of an agent's state."""

    messages: Sequence[AnyMessage]
    structured: Any

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "FinalAnswer":
        """The final answer in this state of an agent."""
        return cls(state["messages"], state.get("structured_response"))

    @property
    def last(self) -> AnyMessage | None:
        """The message with the answer; None if the last message is the user's or a system message."""
        last = self.messages[-1] if self.messages else None
        return None if isinstance(last, HumanMessage | SystemMessage) else last

    @property
    def before(self) -> list[AnyMessage]:
        """The messages before the answer."""
        return list(self.messages if self.last is None else self.messages[:-1])

    @property
    def text(self) -> str:
        """Everything that would leave, as text for a judge."""
        parts = [] if self.last is None else [str(self.last.text)]
        parts += [] if self.structured is None else [json.dumps(_plain(self.structured), ensure_ascii=False)]
        return "\n\n".join(dict.fromkeys(filter(None, parts)))

    def is_released(self, turn: Turn, answered: Answered, signer: VerdictSigner, as_stored: AsStored) -> bool:
        """Whether it is identical to what was released in this run of the agent for this prompt.

        If contents are redacted before they are stored, the prompt is compared as ``as_stored`` returns it, and an
        answer that differs from the stored one needs the signature of its exact text: a change within a redacted part
        leaves no other trace.
        """
        if self.structured is not None:
            return self._structured(turn, answered, signer, as_stored)
        if isinstance(self.last, AIMessage):
            return self._answer(self.last, turn, answered, signer, as_stored)
        if isinstance(self.last, ToolMessage):
            return self._result(self.last, turn, answered, signer, as_stored)
        return self.last is None

    def _answer(
        self, last: AIMessage, turn: Turn, answered: Answered, signer: VerdictSigner, as_stored: AsStored
    ) -> bool:
        if (released := _released_turn(last, turn, answered, as_stored)) is None:
            return False
        expected, more = (
            answer_message(released[1], released[0]),
            last.tool_calls or last.invalid_tool_calls or last.additional_kwargs,
        )
        return not more and _is_same(last, expected, turn, signer)

    def _result(
        self, last: ToolMessage, turn: Turn, answered: Answered, signer: VerdictSigner, as_stored: AsStored
    ) -> bool:
        """A tool's result that was governed as an answer, or the denial of a call of such a tool."""
        if last.artifact is not None or last.additional_kwargs:
            return False
        if (released := _released_turn(last, turn, answered, as_stored)) is not None:
            return _is_same(last, answer_message(released[1], released[0]), turn, signer)
        calls = [call for message in self.messages if isinstance(message, AIMessage) for call in message.tool_calls]
        matching = [call for call in calls if call["id"] == last.tool_call_id]
        return any(read_denial(turn, call, last, signer) is not None for call in matching)

    def _structured(self, turn: Turn, answered: Answered, signer: VerdictSigner, as_stored: AsStored) -> bool:
        places = [i for i, message in enumerate(self.messages) if isinstance(message, AIMessage)]
        if not places:
            return False
        answer, notes = self.messages[places[-1]], self.messages[places[-1] + 1 :]
        released = _released_turn(answer, turn, answered, as_stored)
        if (
            not isinstance(answer, AIMessage)
            or released is None
            or answer.additional_kwargs
            or answer.invalid_tool_calls
        ):
            return False
        metadata = safi_metadata(answer)
        metadata.pop("calls", None)
        signature = metadata.pop("signature", None)
        expected = answer_message(released[1], released[0]).response_metadata
        exact = digest(answer.content, answer.tool_calls, notes, self.structured)
        fingerprint = {"structured": signer.sign_answer(turn, "", exact)}
        stored = as_stored(fingerprint)
        return bool(
            {**answer.response_metadata, "safi": metadata} == expected
            and stored.items() <= released[1]["metadata"].items()
            # A redaction may give the same text for different fingerprints.
            and (stored == fingerprint or signer.is_signed_answer(turn, metadata["turnId"], exact, signature))
        )


def digest(text: object, calls: Sequence[ToolCall], notes: Sequence[AnyMessage], structured: Any) -> str:
    """A fingerprint of a structured answer: its message's text and calls, the messages after it, and the object."""
    call_parts = [[call["id"], call["name"], call["args"]] for call in calls]
    note_parts = [[note.type, getattr(note, "tool_call_id", None), note.content] for note in notes]
    whole = json.dumps(
        _plain([text, call_parts, note_parts, type(structured).__qualname__, structured]), sort_keys=True
    )
    return sha256(whole.encode()).hexdigest()


def result_id(run: str, call_id: str) -> str:
    """The turn id of a tool's result that is an answer, but not the one that the agent ends with."""
    return str(uuid5(NAMESPACE_OID, f"{run}:{call_id}"))


def _is_same(message: AnyMessage, expected: AIMessage, turn: Turn, signer: VerdictSigner) -> bool:
    """Whether a message is the released one; a content that is not a text is not what was released."""
    content, metadata = message.content, safi_metadata(message)
    signature = metadata.pop("signature", None)
    if not isinstance(content, str) or {**message.response_metadata, "safi": metadata} != expected.response_metadata:
        return False
    return content == expected.content or signer.is_signed_answer(turn, metadata["turnId"], content, signature)


def _released_turn(
    message: AnyMessage, turn: Turn, answered: Answered, as_stored: AsStored
) -> tuple[int, Mapping[str, Any]] | None:
    """The released turn with the message's turn id, if it is of the same run, prompt and memory key."""
    turn_id, run = safi_metadata(message).get("turnId"), turn["id"]
    results = [result_id(run, message.tool_call_id)] if isinstance(message, ToolMessage) else []
    if not isinstance(turn_id, str) or not (turn_id in (run, *results) or turn_id.startswith(f"{run}.")):
        return None
    released = answered(turn_id)
    if released is None or (released[1]["prompt"], released[1]["key"]) != (as_stored(turn["prompt"]), turn["key"]):
        return None
    return released


def _plain(item: Any) -> Any:
    return to_jsonable_python(item, fallback=repr, inf_nan_mode="strings")
