"""Self-consistency: select the draft with which most others agree.

Drafts are not judged here. Pulse-Split-Cascade embeds the drafts as vectors, finds the largest group that agrees, and
selects the draft closest to all of this group (``sal_lightning.PulseCascade.select``). The share that agrees indicates
the model's certainty (Kuhn et al. 2023, semantic entropy); it is passed to the Will and recorded.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from langchain_core.embeddings import Embeddings
from langchain_core.messages.ai import add_usage
from typing_extensions import override

from safi_agent.turn import Draft

DIMENSIONS = 1024
LEXICAL_THRESHOLD = 0.6  # cosine similarity from which two drafts agree, for bags of words
EMBEDDING_THRESHOLD = 0.8  # the same for an embedding model
INSTALL = (
    'drafts: several need sal_lightning, whose PulseCascade chooses among them: pip install "sal-lightning[safi]".'
)
Vectors = list[list[float]]
_WORD = re.compile(r"\w+")


class Selection(NamedTuple):
    """The index of the selected draft, and the share of drafts in (0, 1] that agree with it, itself included."""

    place: int
    share: float


Select = Callable[[Vectors], Selection]


class LexicalEmbeddings(Embeddings):
    """Hashed bag-of-words embeddings: no model, no network, and the same in every process.

    A word adds √count to one of 1024 places. Languages without spaces between words need an embedding model.
    """

    @override
    def embed_documents(self, texts: list[str]) -> Vectors:
        return [self.embed_query(text) for text in texts]

    @override
    def embed_query(self, text: str) -> list[float]:
        counts = [0] * DIMENSIONS
        for word in _WORD.findall(text.casefold()) or list(text):
            counts[int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest()) % DIMENSIONS] += 1
        return [math.sqrt(count) for count in counts]


def cascade_selector(alike: float) -> Select:
    """Create a selector by Pulse-Split-Cascade; vectors agree from this cosine similarity.

    If no two agree, the draft closest to all others is selected.

    Raises:
        ImportError: sal_lightning is not installed.
    """
    try:
        import torch

        from sal_lightning import PulseCascade
    except ImportError:
        raise ImportError(INSTALL) from None

    def choose(vectors: Vectors) -> Selection:
        states = torch.tensor(vectors, dtype=torch.double)
        selected = PulseCascade(merge=alike).select(states)
        alone = len(set(selected.lineages.tolist())) == len(vectors)
        return Selection(PulseCascade(merge=-1).select(states).chosen if alone else selected.chosen, selected.share)

    return choose


@dataclass(frozen=True, eq=False)
class DraftSelector:
    """The number of drafts, and how one of them is selected."""

    count: int
    embeddings: Embeddings
    choose: Select

    @classmethod
    def create(cls, count: int, embeddings: Embeddings | None, alike: float | None) -> "DraftSelector | None":
        """Create a selector; None for one draft, which needs no embeddings and no import."""
        if count == 1:
            return None
        usual = LEXICAL_THRESHOLD if embeddings is None else EMBEDDING_THRESHOLD
        return cls(count, embeddings or LexicalEmbeddings(), cascade_selector(usual if alike is None else alike))

    def select(self, drafts: Sequence[Draft]) -> Draft:
        """Select a draft; empty and missing drafts agree with no other.

        Raises:
            ValueError: the embeddings are not one vector of finite numbers for each draft.
        """
        texts = [draft.answer for draft in drafts if draft.answer.strip()]
        return self._select(drafts, self.embeddings.embed_documents(texts) if len(texts) > 1 else [])

    async def aselect(self, drafts: Sequence[Draft]) -> Draft:
        """Asynchronous version."""
        texts = [draft.answer for draft in drafts if draft.answer.strip()]
        return self._select(drafts, await self.embeddings.aembed_documents(texts) if len(texts) > 1 else [])

    def _select(self, drafts: Sequence[Draft], vectors: Vectors) -> Draft:
        answered = [draft for draft in drafts if draft.answer.strip()]
        chosen = Selection(0, 1.0) if len(answered) < 2 else self.choose(checked_vectors(vectors, len(answered)))
        usage = None
        for draft in drafts:
            usage = add_usage(usage, draft.usage) if usage or draft.usage else None
        selected = answered[chosen.place] if answered else drafts[0]
        return selected._replace(
            usage=usage,
            flags=(*selected.flags, *(("drafts_missing",) if len(answered) < self.count else ())),
            drafts=self.count,
            agreement=chosen.share * len(answered) / self.count,
        )


def checked_vectors(vectors: Sequence[Any], count: int) -> Vectors:
    """Validate the vectors of an embedding model.

    Raises:
        ValueError: they are not one for each draft, or not finite numbers of one length.
    """
    rows = [[float(entry) for entry in row] for row in vectors]
    lengths = sorted({len(row) for row in rows})
    if len(rows) != count or len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"embeddings: expected {count} vectors of one length, got {len(rows)} of lengths {lengths}.")
    if not all(math.isfinite(entry) for row in rows for entry in row):
        raise ValueError("embeddings: expected finite numbers, got NaN or infinity.")
    return rows
