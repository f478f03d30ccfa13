"""The element rule: stability of each weight, from the gradients it received."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning import directions
from sal_lightning.rules.base import Rule, State, bands
from sal_lightning.rules.subspace import BETA


class Element(Rule):
    """``held(X) = s ⊙ X`` with ``s = Ω / (Ω + 1/strength)``.

    ``Ω`` sums, over what was consolidated, the root of the mean squared gradient (√Fisher: what SI and MAS measure too,
    Benzing 2022), scaled to mean 1 over all these weights together.
    """

    grain = "element"

    def __init__(self, parameters: dict[str, nn.Parameter], strength: float) -> None:
        super().__init__("element", parameters)
        self.strength = strength
        self.memory: list[Tensor] | None = None  # Ω, one tensor a parameter
        self.clear()

    @override
    def clear(self) -> None:
        self.F: list[Tensor] | None = None  # running mean of g², one tensor a parameter

    def adopt(self, parameters: dict[str, nn.Parameter]) -> None:
        """Take over parameters that another rule could not follow."""
        self.parameters.update(parameters)
        for kept in (self.F, self.memory):
            if kept is not None:
                kept.extend(_zeros(p) for p in parameters.values())

    @torch.no_grad()
    @override
    def observe(self) -> None:
        if self.F is None:
            self.F = [_zeros(p) for p in self.parameters.values()]
        for f, p in zip(self.F, self.parameters.values(), strict=True):
            if p.grad is not None:
                g = p.grad.to_dense() if p.grad.is_sparse else p.grad
                g = g.abs().float()
                f.mul_(BETA).addcmul_(g, g, value=1 - BETA)

    @override
    def consolidate(self) -> None:
        if self.F is None:
            return
        roots = torch._foreach_sqrt(self.F)
        mean = torch.stack([r.sum() for r in roots]).sum() / self.numel()
        importance = [r / mean.clamp(min=torch.finfo(r.dtype).tiny) for r in roots]
        past = self.memory or [torch.zeros_like(i) for i in importance]
        self.memory = [i + o for i, o in zip(importance, past, strict=True)]

    @override
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        assert self.memory is not None
        return [x * directions.stability(o, self.strength).to(x.dtype) for x, o in zip(X, self.memory, strict=True)]

    @override
    def bands(self) -> Tensor:
        if self.memory is None:
            return torch.tensor([0.0, 0.0, self.numel()])
        return torch.stack([bands(directions.stability(o, self.strength)) for o in self.memory]).sum(0)

    @override
    def state_dict(self) -> State:
        return {"window": self.pack(self.F), "memory": self.pack(self.memory)}

    @override
    def load_state_dict(self, state: State) -> None:
        self.F, self.memory = self.unpack(state["window"]), self.unpack(state["memory"])

    @override
    def pack(self, memory: list[Tensor] | None) -> State:
        return {} if memory is None else dict(zip(self.parameters, memory, strict=True))

    @override
    def unpack(self, state: State) -> list[Tensor] | None:
        return [state[name].to(p.device, copy=True) for name, p in self.parameters.items()] if state else None


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros(p.shape, device=p.device)
