"""Signed verdicts on tool calls and signed answers, with an HMAC under a key of the store.

An agent's state is plain data, which a review page, another middleware or an edit of a checkpoint can change. A signed
verdict is valid only for the call and the run that it was made for; any other one is ignored. An answer is signed where
the stored one is redacted: only the signature tells whether a text is the one that was released.
"""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from langchain_core.messages import ToolCall

from safi_agent.turn import Turn, Verdict

_FIELDS = ("decision", "code", "reason")


@dataclass(frozen=True)
class VerdictSigner:
    """Signs and verifies verdicts and answers; ``about`` identifies the values and settings on which they depend."""

    key: str
    about: str

    def sign(self, turn: Turn, call: ToolCall, verdict: Verdict) -> dict[str, str]:
        """The signed verdict on this call in this run of the agent."""
        fields = {"decision": verdict.decision, "code": verdict.code, "reason": verdict.reason}
        return {**fields, "signature": self._sign(turn, call, fields)}

    def verify(self, turn: Turn, call: ToolCall, mark: object) -> Verdict | None:
        """The verdict on this call in this run; None if it is missing, was changed, or belongs to another call."""
        if not isinstance(mark, Mapping):
            return None
        fields = {name: mark.get(name) for name in _FIELDS}
        signed, signature = self._sign(turn, call, fields), mark.get("signature")
        if not signed or not isinstance(signature, str) or not hmac.compare_digest(signed.encode(), _bytes(signature)):
            return None
        return Verdict(fields["decision"], str(fields["reason"]), str(fields["code"]))  # type: ignore[arg-type]

    def _sign(self, turn: Turn, call: ToolCall, fields: Mapping[str, Any]) -> str:
        """The HMAC in hexadecimal; empty if JSON cannot represent the call, which then has no signature."""
        return self._hmac(turn, call["id"], call["name"], call["args"], dict(fields))

    def sign_answer(self, turn: Turn, turn_id: str, text: str) -> str:
        """The signature, in hexadecimal, of an answer that was released in this run of the agent under this id."""
        return self._hmac(turn, turn_id, text)

    def is_signed_answer(self, turn: Turn, turn_id: str, text: str, signature: object) -> bool:
        """Whether exactly this answer was signed in this run under this id."""
        signed = self.sign_answer(turn, turn_id, text)
        return isinstance(signature, str) and hmac.compare_digest(signed.encode(), _bytes(signature))

    def _hmac(self, turn: Turn, *signed: Any) -> str:
        run = (turn["metadata"]["agentRun"], turn["key"], turn["prompt"])
        try:
            text = json.dumps([self.about, run, *signed], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return ""
        return hmac.new(self.key.encode(), text.encode(), sha256).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
