"""The turn, the state that is passed through the faculties."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypedDict

from langchain_core.messages import AIMessage, BaseMessage, ToolCall
from langchain_core.messages.ai import UsageMetadata

from safi_agent.ledger import Findings

Decision = Literal["approve", "violation"]
ENDLESS, TRUNCATED = "structure_reasoning", "draft_truncated"  # flags of a draft, and codes of the verdicts on them


class Draft(NamedTuple):
    """The Intellect's draft, which is not visible outside before the Will has approved it.

    If it was selected from several ``drafts``, ``agreement`` in [0, 1] is the share of them that agree with it.
    ``model`` is the model's name in the reply, empty if there is none. ``texts`` are decoded parts of the answer in
    which patterns are searched separately, such as the arguments of a tool call. ``calls`` are those of a chain's model
    to its bound tools; then ``answer`` has them as text too, and ``said`` is the text beside them.
    """

    answer: str
    reflection: str = ""
    usage: UsageMetadata | None = None
    flags: tuple[str, ...] = ()
    drafts: int = 1
    agreement: float | None = None
    model: str = ""
    texts: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    said: str = ""


class Verdict(NamedTuple):
    """The Will's decision; ``code`` names the rule, ``model`` the judge's model if its reply had a name."""

    decision: Decision
    reason: str
    code: str = "judge"
    usage: UsageMetadata | None = None
    model: str = ""


class Turn(TypedDict, total=False):
    """One governed turn; each faculty adds its key.

    If the caller gave a ``safi_turn_id``, ``asked`` is derived from that id and the request (see
    ``idempotency.TurnName``), and ``spare`` is the id that the turn gets if ``id`` belongs to another turn; both are
    empty otherwise. ``not_shown`` lists the parts of the conversation that the judges do not get: "6 earlier
    messages", "2 images".
    """

    id: str
    asked: str
    spare: str
    key: str
    time: str
    prompt: str
    messages: list[BaseMessage]
    context: str
    not_shown: tuple[str, ...]
    metadata: Mapping[str, Any]
    feedback: str
    draft: Draft
    verdict: Verdict
    answer: AIMessage
    ledger: Findings
