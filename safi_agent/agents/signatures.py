"""Signed verdicts on tool calls, with an HMAC under a key of the store.

An agent's state is plain data, which a review page, another middleware or an edit of a checkpoint can change. A signed
verdict is valid only for the call and the run that it was made for; any other one is ignored.
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
    """Signs and verifies verdicts; ``about`` identifies the values and settings on which they depend."""

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
        run = (turn["metadata"]["agentRun"], turn["key"], turn["prompt"])
        try:
            signed = json.dumps(
                [self.about, run, call["id"], call["name"], call["args"], dict(fields)], sort_keys=True, allow_nan=False
            )
        except (TypeError, ValueError, RecursionError):
            return ""
        return hmac.new(self.key.encode(), signed.encode(), sha256).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
