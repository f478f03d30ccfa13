"""The turn that flows through the faculties."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata

if TYPE_CHECKING:
    from safi_agent.faculties.spirit import Assessment
    from safi_agent.ledger import Findings

Decision = Literal["approve", "violation"]
ENDLESS, TRUNCATED = "structure_reasoning", "draft_truncated"  # flags of a draft, and codes of the verdicts on them


class Draft(NamedTuple):
    """What the Intellect proposes; nobody outside sees it before the Will has.

    Where it was chosen from several ``drafts``, ``agreement`` in [0, 1] is the share of them that say the same.
    ``model`` is the name that the reply gave for its model, empty where it gave none.
    ``texts`` are parts of the answer, decoded, that patterns are tried on one by one: arguments of a call, for one.
    """

    answer: str
    reflection: str = ""
    usage: UsageMetadata | None = None
    flags: tuple[str, ...] = ()
    drafts: int = 1
    agreement: float | None = None
    model: str = ""
    texts: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """What the Will decides; ``code`` says by which rule, ``model`` which model ruled, where its reply had a name."""

    decision: Decision
    reason: str
    code: str = "judge"
    usage: UsageMetadata | None = None
    model: str = ""


class Turn(TypedDict, total=False):
    """One governed turn; each faculty adds its key.

    Where the caller named it, ``asked`` stands for what was asked under that name (see ``opening.Name``), and ``spare``
    is the id that it gets where ``id`` turns out to belong to another turn; both are empty otherwise. ``not_shown``
    says what of the conversation judges do not get: "6 earlier messages", "2 images".
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
    coaching: str
    draft: Draft
    verdict: Verdict
    answer: AIMessage
    ledger: "Findings"
    mu: Mapping[str, float]
    spirit: "Assessment"
