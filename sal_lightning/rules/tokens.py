"""The subspace rule for embeddings: the input directions are the tokens, their energy is how often they come."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning import directions
from sal_lightning.rules.base import Rule, State, bands
from sal_lightning.rules.subspace import BETA, DENSE, FLOOR


class Memory(NamedTuple):
    """What is held: the energy ``lam`` (tokens,) of each token, mean 1 a window, and its stability ``s``."""

    lam: Tensor
    s: Tensor


class Tokens(Rule):
    """``held(X) = diag(s) X``: each row of the table is held as firmly as its token was frequent."""

    grain = "subspace"

    def __init__(self, name: str, parameters: dict[str, nn.Parameter], table: nn.Embedding, strength: float) -> None:
        super().__init__(name or "model", parameters)
        self.table, self.strength = table, strength
        self.counts: Tensor | None = None
        self.memory: Memory | None = None
        self.clear()

    @override
    def clear(self) -> None:
        self.R: Tensor | None = None  # (tokens,) running share of each token
        self.weight = 0.0  # 1 − β^steps

    due = True

    def see(self, args: tuple[Any, ...], step: int) -> None:
        """Count the tokens of a forward pass."""
        counts = torch.bincount(args[0].detach().flatten(), minlength=self.table.num_embeddings).float()
        self.counts = counts if self.counts is None else self.counts + counts

    def surprise(self) -> Tensor | None:
        """How unusual this step's tokens are: as ``Window.surprise``, for one-hot rows."""
        if self.counts is None or self.R is None or self.weight < 1 - BETA**DENSE:
            return None
        lam = self.R / self.weight * len(self.R)
        return ((self.counts / self.counts.sum()) * len(self.R) / (lam + FLOOR)).sum().log()

    @override
    def observe(self) -> None:
        if self.counts is not None:
            share = self.counts / self.counts.sum().clamp(min=1)
            self.R = share * (1 - BETA) if self.R is None else BETA * self.R + (1 - BETA) * share
            self.weight = BETA * self.weight + (1 - BETA)
        self.forget_step()

    @override
    def forget_step(self) -> None:
        self.counts = None

    @override
    def consolidate(self) -> None:
        if self.R is None:
            return
        lam = self.R / self.R.mean()
        lam = lam if self.memory is None else lam + self.memory.lam
        self.memory = Memory(lam, directions.stability(lam, self.strength))

    @override
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        assert self.memory is not None
        s, (x,) = self.memory.s, X
        if x.is_sparse:
            x = x.coalesce()
            values = x.values() * s[x.indices()[0]][:, None].to(x.dtype)
            return [torch.sparse_coo_tensor(x.indices(), values, x.shape, is_coalesced=True, check_invariants=False)]
        return [x * s[:, None].to(x.dtype)]

    @override
    def bands(self) -> Tensor:
        if self.memory is None:
            return torch.tensor([0.0, 0.0, self.numel()])
        return bands(self.memory.s, self.table.embedding_dim)

    @override
    def state_dict(self) -> State:
        return {
            "weight": self.weight,
            "window": {} if self.R is None else {"R": self.R},
            "memory": self.pack(self.memory),
        }

    @override
    def load_state_dict(self, state: State) -> None:
        self.weight = state["weight"]
        self.R = state["window"]["R"].to(self.device) if state["window"] else None
        self.memory = self.unpack(state["memory"])

    @override
    def pack(self, memory: Memory | None) -> State:
        return {} if memory is None else memory._asdict()

    @override
    def unpack(self, state: State) -> Memory | None:
        return Memory(**{name: value.to(self.device) for name, value in state.items()}) if state else None
