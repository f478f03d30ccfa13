"""The subspace rule for embeddings: the input directions are the tokens, their energy is their frequency."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning.distributed import part
from sal_lightning.layers import Reals
from sal_lightning.rules import directions
from sal_lightning.rules.base import State, grown
from sal_lightning.rules.input_rule import BETA, DENSE, FLOOR, InputRule
from sal_lightning.rules.scores import Scores

LEAST = 1e-4  # distances below this are rounding, for data in which every batch has the same tokens


class Memory(NamedTuple):
    """The energy ``lam`` (tokens,) of each token, mean 1 per window, and its stability ``s`` (tokens,)."""

    lam: Tensor
    s: Tensor


def far(q: Tensor, R: Tensor) -> Tensor:
    """Distance of a batch's token shares q (tokens,) from R (tokens,): Pearson's ``χ² = Σ (q − R)² / (R + floor/V)``.

    >>> far(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    tensor(0.7692)
    """
    return ((q - R).square() / (R + FLOOR / len(R))).sum().clamp(min=torch.finfo(R.dtype).tiny)


class EmbeddingRule(InputRule):
    """``held(X) = diag(s) X``: the stability of each row of the table follows from the frequency of its token."""

    grain = "subspace"

    def __init__(
        self,
        name: str,
        parameters: dict[str, nn.Parameter],
        table: nn.Embedding,
        strength: float,
        modules: tuple[nn.Module, ...] = (),
    ) -> None:
        super().__init__(name or "model", parameters)
        self.table, self.strength = table, strength
        self.modules = modules or (table,)  # all modules that use the table
        self.real: Reals = (None,)  # which input tokens are not padding
        self.counts: Tensor | None = None
        self.surprise: Tensor | None = None  # log distance of this step's tokens from R: (sum, count)
        self.reference: Tensor | None = None  # the R that novelty is measured against; None: of the window
        self.memory: Memory | None = None
        self.clear()

    @override
    def clear(self) -> None:
        self.R: Tensor | None = None  # (tokens,) running share of each token
        self.weight = 0.0  # 1 − β^steps
        self.usual: Tensor | None = None  # R when novelty was last measured

    @override
    def window_state(self) -> State:
        window = {name: x for name in ("R", "usual") if (x := getattr(self, name)) is not None}
        return {"weight": self.weight, "window": window}

    @override
    def load_window(self, state: State) -> None:
        window = {name: _padded(x, self.table, self.name) for name, x in state["window"].items()}
        self.weight, self.R, self.usual = state["weight"], window.get("R"), window.get("usual")

    @override
    def set_reference(self, window: State | None) -> None:
        usual = None if window is None else window["window"].get("usual")
        self.reference = None if usual is None else _padded(usual, self.table, self.name)

    @property
    @override
    def due(self) -> bool:
        return True

    @property
    def unused(self) -> Tensor:
        """1 for each row of the table in this process whose token does not occur in the window, else 0: (rows, 1)."""
        R = torch.zeros(self.table.num_embeddings, device=self.device) if self.R is None else self.R
        return (part(R, self.table.weight)[:, None] == 0).float()

    @property
    def used(self) -> bool:
        """Whether any input was ever collected, in this training or before."""
        return self.holds or self.R is not None

    def read(self, args: tuple[Any, ...], step: int) -> Tensor:
        """Counts of each token in a forward pass, (tokens,)."""
        tokens = args[0].detach().flatten()
        # Not `bincount`, which synchronizes with the device.
        counts = torch.zeros(self.table.num_embeddings, device=tokens.device)
        real = self.real[0]
        ones = torch.ones(tokens.shape, device=tokens.device) if real is None else real.real.float()
        counts.scatter_add_(0, tokens.long(), ones)
        if self.table.padding_idx is not None:  # it gets no gradient
            counts[self.table.padding_idx] = 0
        return counts

    def collect_rows(self, counts: Tensor, measured: bool = False) -> None:
        """Add the counts (tokens,) of one forward pass; if ``measured``, compute the novelty of this step's counts."""
        self.counts = counts if self.counts is None else self.counts + counts
        if measured and self.R is not None and self.weight >= 1 - BETA**DENSE and self.usual is None:
            self.usual = self.R / self.weight
        reference = self.usual if self.reference is None else self.reference
        if measured and reference is not None:
            # A distance of shares, not the rarity of single tokens: text of a few frequent tokens can be new as well.
            n = self.counts.sum()
            distance = far(self.counts / n.clamp(min=1), reference) + LEAST
            self.surprise = torch.stack([n * distance.log(), n])

    @override
    def refresh(self) -> None:
        self.usual = None

    def pending(self) -> State:
        """Counts of this step so far."""
        return {"counts": self.counts, "surprise": self.surprise}

    def resume(self, pending: State) -> None:
        """Continue with what ``pending`` returned."""
        kept = {name: None if x is None else x.to(self.device) for name, x in pending.items()}
        self.counts, self.surprise = kept["counts"], kept["surprise"]
        if self.counts is not None:
            self.counts = _padded(self.counts, self.table, self.name)

    @override
    def update(self, unit: float = 1.0) -> None:
        if self.counts is not None:
            n = self.counts.sum()
            # A step with only padding leaves the shares unchanged.
            usual = self.counts if self.R is None else self.R / self.weight
            share = torch.where(n > 0, self.counts / n.clamp(min=1), usual)
            self.R = share * (1 - BETA) if self.R is None else BETA * self.R + (1 - BETA) * share
            self.weight = BETA * self.weight + (1 - BETA)
        self.discard_step()

    @override
    def discard_step(self) -> None:
        self.counts = self.surprise = None

    @override
    def window_tensors(self) -> list[Tensor]:
        return [torch.zeros(self.table.num_embeddings, device=self.device) if self.R is None else self.R]

    @override
    def set_window(self, tensors: Sequence[Tensor]) -> None:
        (self.R,) = tensors

    @override
    def consolidate(self) -> None:
        if self.R is None or not self.R.any():
            return
        lam = self.R / self.R.mean()
        lam = lam if self.memory is None else lam + self.memory.lam
        self.memory = Memory(lam, directions.stability(lam, self.strength))

    @override
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        (x,) = X
        if x.is_sparse:
            x = x.coalesce()
            values = x.values() * _stability(self.memory, self.table)[x.indices()[0]].to(x.dtype)
            return [torch.sparse_coo_tensor(x.indices(), values, x.shape, is_coalesced=True, check_invariants=False)]
        return [x * _stability(self.memory, self.table).to(x.dtype)]

    @override
    def hold_back(self, G: Sequence[Tensor]) -> None:
        if G[0].is_sparse:
            super().hold_back(G)
        else:
            G[0].addcmul_(G[0], _stability(self.memory, self.table).to(G[0].dtype), value=-1)

    @override
    def put_back(self, W: Sequence[Tensor | None], W0: Sequence[Tensor]) -> None:
        if W[0] is not None:
            W[0].lerp_(W0[0], _stability(self.memory, self.table).to(W0[0].dtype))

    @override
    def stabilities(self) -> list[Scores]:
        if self.memory is None:
            return [Scores(torch.zeros(1), self.trained())]
        return [Scores(self.memory.s, self.table.embedding_dim / self.uses)]

    @override
    def state_dict(self) -> State:
        return self.window_state() | {"memory": self.pack(self.memory)}

    @override
    def load_state_dict(self, state: State) -> None:
        self.load_window(state)
        self.memory = self.unpack(state["memory"])

    @override
    def pack(self, memory: Memory | None) -> State:
        return {} if memory is None else memory._asdict()

    @override
    def unpack(self, state: State) -> Memory | None:
        if not state:
            return None
        return Memory(**{name: _padded(value, self.table, self.name) for name, value in state.items()})


def _stability(memory: Memory | None, table: nn.Embedding) -> Tensor:
    """Stability (rows, 1) of the rows of the table in this process."""
    assert memory is not None, "nothing is held yet"
    return part(memory.s, table.weight)[:, None]


def _padded(x: Tensor, table: nn.Embedding, name: str) -> Tensor:
    """A saved tensor on the table's device, padded with zeros for rows that were added: their stability is 0."""
    return grown(x.to(table.weight.device), (table.num_embeddings,), f"the table {name!r}")
