"""The element rule: stability of each weight, from the gradients it received."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning.distributed import gather, local, part, sharded, totals
from sal_lightning.rules import directions
from sal_lightning.rules.base import Rule, State, grown
from sal_lightning.rules.input_rule import BETA
from sal_lightning.rules.scores import Scores


class ElementRule(Rule):
    """``held(X) = s ⊙ X`` with ``s = Ω / (Ω + 1/strength)``.

    ``Ω`` is a sum over consolidations of the root mean squared gradient (√Fisher, which SI and MAS approximate too:
    Benzing 2022), each scaled to mean 1 over all weights of this rule.
    """

    grain = "element"

    def __init__(self, parameters: dict[str, nn.Parameter], strength: float) -> None:
        super().__init__("element", parameters)
        self.strength = strength
        self.later: dict[str, State] = {"window": {}, "memory": {}}  # loaded values of parameters not trained yet
        self._s: tuple[list[Tensor], list[Tensor]] | None = None
        self.memory: list[Tensor] | None = None  # Ω, one tensor per parameter
        self.clear()

    @override
    def clear(self) -> None:
        self.F: list[Tensor] | None = None  # running mean of g², one tensor per parameter

    @override
    def window_state(self) -> State:
        return {"window": self.pack(self.F)}

    @override
    def load_window(self, state: State) -> None:
        self.F = self.unpack(state["window"])

    def adopt(self, parameters: dict[str, nn.Parameter]) -> None:
        """Add parameters that another rule cannot cover, or that were added later."""
        self.parameters.update(parameters)
        for kept, later in ((self.F, self.later["window"]), (self.memory, self.later["memory"])):
            if kept is not None:
                kept.extend(_placed(later[n], p, n) if n in later else _zeros(p) for n, p in parameters.items())
                for name in parameters:
                    later.pop(name, None)

    @torch.no_grad()
    @override
    def update(self, unit: float = 1.0) -> None:
        if self.F is None:
            self.F = [_zeros(p) for p in self.parameters.values()]
        seen = [(f, g) for f, g in zip(self.F, self.gradients(), strict=True) if g is not None]
        F = [f for f, _ in seen]
        G = [(g.to_dense() if g.is_sparse else g).to(torch.promote_types(g.dtype, torch.float32)) for _, g in seen]
        G = [g.abs() if g.is_complex() else g for g in G]
        if F:
            torch._foreach_mul_(F, BETA)
            torch._foreach_addcmul_(F, G, G, value=(1 - BETA) / unit**2)
            for f in F:
                f.nan_to_num_(0.0, 0.0, 0.0)  # after a gradient overflow

    @override
    def window_tensors(self) -> list[Tensor]:
        if self.F is None:
            self.F = [_zeros(p) for p in self.parameters.values()]
        return [f for f, p in zip(self.F, self.parameters.values(), strict=True) if not sharded(p)]

    @override
    def set_window(self, tensors: Sequence[Tensor]) -> None:
        merged, F = iter(tensors), self.F or []
        self.F = [f if sharded(p) else next(merged) for f, p in zip(F, self.parameters.values(), strict=True)]

    @override
    def consolidate(self) -> None:
        if self.F is None:
            return
        roots = torch._foreach_sqrt(self.F)
        # Sorted by name, so that the sum is bitwise independent of the order in which parameters were covered.
        sums = {name: r.sum() for name, r in sorted(zip(self.parameters, roots, strict=True), key=lambda pair: pair[0])}
        average = torch.stack(totals(list(sums.values()), [self.parameters[n] for n in sums])).sum() / self.numel()
        importance = [r / average.clamp(min=torch.finfo(r.dtype).tiny) for r in roots]
        past = self.memory or [torch.zeros_like(i) for i in importance]
        self.memory = [i + o for i, o in zip(importance, past, strict=True)]

    @property
    def s(self) -> list[Tensor]:
        """Stability of each weight, one tensor per parameter, cached for the current memory."""
        assert self.memory is not None
        if self._s is None or self._s[0] is not self.memory:
            self._s = self.memory, [directions.stability(o, self.strength) for o in self.memory]
        return self._s[1]

    @override
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        return [x * s.to(x.dtype) for x, s in zip(X, self.s, strict=True)]

    @override
    def put_back(self, W: Sequence[Tensor | None], W0: Sequence[Tensor]) -> None:
        if all(w is not None and w.dtype == torch.float32 for w in W):
            torch._foreach_lerp_([w for w in W if w is not None], list(W0), self.s)
        else:
            super().put_back(W, W0)

    @override
    def stabilities(self) -> list[Scores]:
        if self.memory is None:
            return [Scores(torch.zeros(1), self.trained())]
        # The local rows of a sharded parameter represent all of its rows.
        return [
            Scores(s, p.numel() / max(s.numel(), 1))
            for s, p in zip(self.s, self.parameters.values(), strict=True)
            if p.requires_grad
        ]

    @override
    def state_dict(self) -> State:
        return {
            "window": self.pack(self.F) | self.later["window"],
            "memory": self.pack(self.memory) | self.later["memory"],
        }

    @override
    def load_state_dict(self, state: State) -> None:
        self.load_window(state)
        self.memory = self.unpack(state["memory"])
        self.later = {
            key: {name: x for name, x in state[key].items() if name not in self.parameters} for key in self.later
        }

    @override
    def pack(self, memory: list[Tensor] | None) -> State:
        if memory is None:
            return {}
        # A memory may precede the parameters that were adopted last.
        return {name: gather(o, p) for (name, p), o in zip(self.parameters.items(), memory, strict=False)}

    @override
    def unpack(self, state: State) -> list[Tensor] | None:
        if not state:
            return None
        return [_placed(state[n], p, n) if n in state else _zeros(p) for n, p in self.parameters.items()]


def _placed(x: Tensor, p: Tensor, name: str) -> Tensor:
    """The local part of a saved tensor on the parameter's device, padded with zeros to the parameter's shape."""
    return part(grown(x.to(p.device), p.shape, name), p).clone()


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros(local(p).shape, device=p.device)
