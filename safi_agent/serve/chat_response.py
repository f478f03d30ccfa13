"""The response to a request for a completion: an approved answer, or the fixed refusal.

A refusal has the finish reason "content_filter". The field ``safi`` and two headers name the turn and the decision.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.messages import AIMessage

from safi_agent.faculties.will import JUDGE_FAILED
from safi_agent.release import is_refusal
from safi_agent.serve.api_errors import ApiError
from safi_agent.turn import TRUNCATED

ID_PREFIX = "safi-"  # of the id of a completion, which the turn's id follows
TURN_HEADER, DECISION_HEADER = "X-SAFi-Turn-Id", "X-SAFi-Decision"
OUTAGE = "The judge could not be asked, so the answer is withheld."


class Completion:
    """The answer of a turn in OpenAI's format.

    Args:
        answer: the answer.
        model: the name of the model in the request.
        outage_message: the text of the error 503.

    Raises:
        ApiError: 503 if the Will's judge could not be asked, so that there is no decision on the draft.
    """

    def __init__(self, answer: AIMessage, model: str, outage_message: str | None = None) -> None:
        self._answer, self._safi = answer, answer.response_metadata["safi"]
        self._head: dict[str, Any] = {
            "id": f"{ID_PREFIX}{self._safi['turnId']}",
            "created": int(time.time()),
            "model": model,
        }
        if JUDGE_FAILED in self._safi["flags"] and is_refusal(self._safi):
            raise ApiError(503, outage_message or OUTAGE, code=JUDGE_FAILED, headers=self.headers)

    @property
    def headers(self) -> dict[str, str]:
        """The turn's id and the decision."""
        return {TURN_HEADER: self._safi["turnId"], DECISION_HEADER: self._safi["willDecision"]}

    @property
    def finish_reason(self) -> str:
        """Why it ends: "content_filter" for a refusal, "length" if the model's output was cut off, else "stop"."""
        if is_refusal(self._safi):
            return "content_filter"
        return "length" if TRUNCATED in self._safi["flags"] else "stop"

    def body(self) -> dict[str, Any]:
        """The whole response."""
        message = {"role": "assistant", "content": str(self._answer.text), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(),
            "safi": self._metadata(),
        }

    def events(self, *, include_usage: bool) -> bytes:
        """The same as server-sent events: the answer in one piece, the end, and the usage if it was asked for."""
        chunks = [*self._chunks(), *([self._chunk(None, usage=self._usage())] if include_usage else [])]
        lines = [*(json.dumps(chunk) for chunk in chunks), "[DONE]"]
        return "".join(f"data: {line}\n\n" for line in lines).encode()

    def _chunks(self) -> Iterator[dict[str, Any]]:
        delta = {"role": "assistant", "content": str(self._answer.text), "refusal": None}
        yield self._chunk({"delta": delta, "finish_reason": None})
        yield self._chunk({"delta": {}, "finish_reason": self.finish_reason}, safi=self._metadata())

    def _chunk(self, choice: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
        choices = [] if choice is None else [{"index": 0, "logprobs": None, **choice}]
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}

    def _usage(self) -> dict[str, int] | None:
        """The tokens of draft and ruling together; None if the models do not report them."""
        if (usage := self._answer.usage_metadata) is None:
            return None
        return {
            "prompt_tokens": usage.get("input_tokens", 0),
            "completion_tokens": usage.get("output_tokens", 0),
            "total_tokens": usage.get("total_tokens", 0),
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            "turn_id": self._safi["turnId"],
            "decision": self._safi["willDecision"],
            "audit_status": self._safi["auditStatus"],
            "value_set": self._safi["valueSet"],
            "flags": self._safi["flags"],
        }
