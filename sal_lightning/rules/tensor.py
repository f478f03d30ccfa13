"""The tensor rule: the published formula of SAL, unchanged, for comparison. Its known faults: see ``TensorRule``."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning.distributed import gather, part, totals
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.scores import Scores

SMOOTHING, START, TAU0, ADAPT, TAU_MIN, TAU_MAX, EPS = 0.3, 0.5, 0.5, 0.1, 0.1, 0.9, 1e-8


def raw_stability(moved: Tensor, grad: Tensor) -> Tensor:
    """``s = 1 / (1 + ‖Δw‖·‖g‖)`` of each tensor, from the norms (n,).

    >>> raw_stability(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0]))
    tensor([1.0000, 0.2000])
    """
    return 1 / (1 + moved * grad + EPS)


def adaptive_threshold(grad: Tensor) -> Tensor:
    """``τ = τ₀ + a·(σ/μ)`` of the gradient norms (n,) of all tensors, clamped to [0.1, 0.9]."""
    ratio = grad.std(correction=0) / (grad.mean() + EPS)
    return (TAU0 + ADAPT * ratio).clamp(TAU_MIN, TAU_MAX)


class TensorRule(Rule):
    """Scales a tensor's gradient by ``1 − s`` where ``s > τ``; s starts at 0.5 and is smoothed by 0.3 per step.

    Known faults of the published formula, kept for comparison: a tensor that does not move counts as stable and is then
    kept from moving (an absorbing state); optimizers that divide by the gradient's size undo the scale; no memory.
    """

    grain = "tensor"
    restores = False

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__("tensor", parameters)
        p = next(iter(parameters.values()))
        self.previous = [w.clone() for w in self.weights()]
        self.s = torch.full((len(parameters),), START, device=p.device)
        self.tau = torch.tensor(TAU0, device=p.device)

    @property
    @override
    def holds(self) -> bool:
        return True

    @torch.no_grad()
    @override
    def update(self, unit: float = 1.0) -> None:
        W, P = self.weights(), list(self.parameters.values())
        G = {i: g for i, g in enumerate(self.gradients()) if g is not None}
        grad = _norms(list(G.values()), [P[i] for i in G]) / unit
        moved = _norms([W[i] - self.previous[i] for i in G], [P[i] for i in G])
        s = list(self.s.unbind())
        for i, raw in zip(G, raw_stability(moved, grad).unbind(), strict=True):
            s[i] = SMOOTHING * raw + (1 - SMOOTHING) * s[i]
        self.s = torch.stack(s)
        for v, w in zip(self.previous, W, strict=True):
            v.copy_(w)
        self.tau = torch.where(grad.mean() < EPS, self.tau, adaptive_threshold(grad))

    @override
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        share = torch.where(self.s > self.tau, self.s, 0)
        return [x * h for x, h in zip(X, share.unbind(), strict=True)]

    @override
    def consolidate(self) -> None:
        """Do nothing: the published rule has no memory."""

    @override
    def clear(self) -> None:
        """Do nothing: the published rule has no window."""

    @override
    def window_state(self) -> State:
        return {}

    @override
    def load_window(self, state: State) -> None:
        """Do nothing: the published rule has no window."""

    @override
    def stabilities(self) -> list[Scores]:
        pairs = zip(self.s, self.parameters.values(), strict=True)
        return [Scores(s, p.numel()) for s, p in pairs if p.requires_grad]

    @override
    def state_dict(self) -> State:
        previous = {name: gather(v, p) for (name, p), v in zip(self.parameters.items(), self.previous, strict=True)}
        return {"previous": previous, "s": self.s, "tau": self.tau}

    @override
    def load_state_dict(self, state: State) -> None:
        known = dict(zip(state["previous"], state["s"].to(self.s.device).unbind(), strict=True))
        for i, (name, p) in enumerate(self.parameters.items()):
            if name in known and state["previous"][name].shape == p.shape:  # a tensor of another shape starts anew
                self.previous[i] = part(state["previous"][name].to(p.device), p).clone()
                self.s[i] = known[name]
        self.tau = state["tau"].to(self.s.device)

    @override
    def pack(self, memory: None) -> State:
        return {}

    @override
    def unpack(self, state: State) -> None:
        return None


def _norms(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    squares = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors]).square()
    return torch.stack(totals(squares.unbind(), parameters)).sqrt()
