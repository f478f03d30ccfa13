"""The turn that flows through the faculties."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata

if TYPE_CHECKING:
    from safi_agent.faculties.spirit import Assessment
    from safi_agent.ledger import Finding

Decision = Literal["approve", "violation"]


class Draft(NamedTuple):
    """What the Intellect proposes; nobody outside sees it before the Will has.

    Where it was chosen from several ``drafts``, ``agreement`` in [0, 1] is the share of them that say the same.
    ``texts`` are parts of the answer, decoded, that patterns are tried on one by one: arguments of a call, for one.
    """

    answer: str
    reflection: str = ""
    usage: UsageMetadata | None = None
    flags: tuple[str, ...] = ()
    drafts: int = 1
    agreement: float | None = None
    texts: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """What the Will decides; ``code`` says by which rule."""

    decision: Decision
    reason: str
    code: str = "judge"
    usage: UsageMetadata | None = None


class Turn(TypedDict, total=False):
    """One governed turn; each faculty adds its key."""

    id: str
    key: str
    time: str
    prompt: str
    messages: list[BaseMessage]
    context: str
    metadata: Mapping[str, Any]
    coaching: str
    draft: Draft
    verdict: Verdict
    answer: AIMessage
    ledger: "list[Finding]"
    mu: Mapping[str, float]
    spirit: "Assessment"
