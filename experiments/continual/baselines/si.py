"""Synaptic intelligence (Zenke et al. 2017)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from experiments.continual.baselines.base import QuadraticPenalty
from experiments.continual.streams import Task

DAMPING = 0.1  # ξ


class SI(QuadraticPenalty):
    """``F`` is each weight's contribution to the decrease of the loss, per squared distance: ``Σ −G ΔW / (way² + ξ)``.

    Args:
        strength: twice the c of the paper, whose penalty lacks the factor ½.
        every: update F every so many steps instead of at the end of tasks; needs no boundaries.
    """

    def __init__(self, strength: float, every: int | None = None) -> None:
        super().__init__(strength)
        self.every = every

    @override
    def begin(self) -> None:
        super().begin()
        self.path = [torch.zeros_like(p) for p in self.W]  # −Σ G ΔW
        self.before = [p.detach().clone() for p in self.W]
        self.steps = 0

    @override
    def before_step(self) -> None:
        if self.every:
            self.task = self.steps // self.every
        super().before_step()

    @override
    def after_step(self) -> None:
        torch._foreach_sub_(self.before, self.W)  # −ΔW
        torch._foreach_addcmul_(self.path, self.G, self.before)
        torch._foreach_copy_(self.before, self.W)
        self.steps += 1
        if self.every and self.steps % self.every == 0:
            self._look_back()

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        if not self.every:
            self._look_back()

    @override
    def tensors(self) -> Iterable[Tensor]:
        return [*super().tensors(), *self.path, *self.before]

    def _look_back(self) -> None:
        for F, path, w, anchor in zip(self.F, self.path, self.W, self.anchor, strict=True):
            F += path / ((w - anchor).square() + DAMPING)
            path.zero_()
        self.move_anchor()
