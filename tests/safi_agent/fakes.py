"""Models that do what a test says, by the faculty that asks."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import PrivateAttr

from safi_agent import ValueSet, load_values

Reply = str | AIMessage | Exception | Callable[[str], Any]
THREE = load_values(
    {
        "name": "three",
        "refusal": "No.",
        "values": [
            {"name": "Truth", "weight": 0.5},
            {"name": "Care", "weight": 0.3},
            {"name": "Thrift", "weight": 0.2},
        ],
    }
)
GATED = load_values(
    {
        "name": "gated",
        "refusal": "No.",
        "values": [*(v.model_dump() for v in THREE.values), {"name": "No Harm", "weight": 0}],
    }
)


def approve(gates: Sequence[str] = ()) -> str:
    return json.dumps({"decision": "approve", "reason": "fine", "gates": [{"value": g, "upheld": True} for g in gates]})


def ledger(values: ValueSet = THREE, score: float = 0.5, confidence: float = 0.8) -> str:
    rows = [{"value": v.name, "score": score, "confidence": confidence, "reason": "so"} for v in values.values]
    return json.dumps({"ledger": rows})


VIOLATION = json.dumps({"decision": "violation", "reason": "it breaks a value", "gates": []})

# Two that say the same, and two that say something else.
YES = "Yes, the permit office decides on that within four weeks."
ALSO = "Yes: within four weeks the permit office decides on that."
NO = "Bees dance to show each other where the flowers are."
OTHER = "Rivers carry sand towards their mouths every spring."


class Fake(BaseChatModel):
    """Replies by role; a reply may be a text, a message, an error, or a function of what was asked."""

    intellect: Any = "An answer.\n<reflection>Because.</reflection>"
    will: Any = approve()
    conscience: Any = ledger()
    delay: float = 0.0
    audit_delay: float = 0.0
    _asked: list[tuple[str, list[BaseMessage]]] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _now: list[int] = PrivateAttr(default_factory=lambda: [0, 0])

    @property
    def _llm_type(self) -> str:
        return "fake"

    @property
    def most_at_once(self) -> int:
        return self._now[1]

    def asked(self, role: str) -> list[list[BaseMessage]]:
        return [messages for asked, messages in self._asked if asked == role]

    def _text(self, messages: list[BaseMessage]) -> AIMessage:
        system = str(messages[0].text)
        role = next((r for r in ("will", "conscience") if system.startswith(f"You are the {r.title()}")), "intellect")
        with self._lock:
            self._asked.append((role, messages))
            self._now[0] += 1
            self._now[1] = max(self._now)
        try:
            if wait := self.audit_delay if role == "conscience" else self.delay:
                time.sleep(wait)
            reply = getattr(self, role)
            if callable(reply):
                reply = reply("\n".join(str(m.text) for m in messages))
            if isinstance(reply, Exception):
                raise reply
            return reply if isinstance(reply, AIMessage) else AIMessage(reply)
        finally:
            with self._lock:
                self._now[0] -= 1

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._text(messages))])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        message = self._text(messages)
        text = str(message.text)
        if message.tool_calls:
            calls: Any = [{**c, "args": json.dumps(c["args"]), "index": i} for i, c in enumerate(message.tool_calls)]
            yield ChatGenerationChunk(message=AIMessageChunk(text, tool_call_chunks=calls))
            return
        for i in range(0, len(text), 4):
            chunk = ChatGenerationChunk(message=AIMessageChunk(text[i : i + 4]))
            if run_manager:
                run_manager.on_llm_new_token(text[i : i + 4], chunk=chunk)
            yield chunk


def in_turn(*replies: Any) -> Callable[[str], Any]:
    """One reply after the other, the last for ever."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]
