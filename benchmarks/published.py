"""A reimplementation of the published SAL, with the same number of copies and synchronizations per step."""

import os
from collections import deque
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from experiments.continual.baselines.base import Baseline
from experiments.continual.streams import Task


def read(number: Tensor) -> float:
    """Read a scalar on the host, which synchronizes with the device."""
    return float(number.item())


class Published(Baseline):
    """The published SAL: ``s = 1/(1 + ‖ΔW‖·‖G‖)`` smoothed by 0.3, ``G ← G (1 − s)`` where ``s > τ``.

    As published: tensor by tensor, with a copy of the last weights and gradients, and eight scalars per tensor and step
    read by the host. With a ``history`` it also keeps what the published analyzer keeps when updated in each step: that
    many copies of weights and gradients in host memory.
    """

    SMOOTHING, START, TAU, ADAPT, LEAST, MOST, EPS = 0.3, 0.5, 0.5, 0.1, 0.1, 0.9, 1e-8

    def __init__(self, history: int = 0) -> None:
        self.history: deque[list[Tensor]] = deque(maxlen=history)

    @override
    def begin(self) -> None:
        self.weights = [torch.zeros_like(p) for p in self.W]
        self.gradients = [torch.zeros_like(w) for w in self.weights]
        self.s = [self.START] * len(self.W)
        self.statistics: list[tuple[float, ...]] = [()] * len(self.W)
        self.protected = [0.0] * len(self.W)

    @override
    def before_step(self) -> None:
        sizes = [self.analyze(i, p, g) for i, (p, g) in enumerate(zip(self.W, self.G, strict=True))]
        tau = self.threshold(sizes)
        for i, p in enumerate(self.W):
            self.protect(i, p, tau)
        if self.history.maxlen:
            self.history.append(self.copies())

    def analyze(self, i: int, p: Tensor, g: Tensor) -> float:
        """Update the tensor's stability; returns the norm of its gradient."""
        moved, size = read(torch.norm(p - self.weights[i])), read(torch.norm(g))
        turn = 0.0
        if torch.norm(self.gradients[i]) > self.EPS and size > self.EPS:
            turn = 1 - read(F.cosine_similarity(g.flatten()[None], self.gradients[i].flatten()[None]))
        self.statistics[i] = (read(g.mean()), read(g.std(correction=0)), turn)
        self.s[i] = self.SMOOTHING / (1 + moved * size) + (1 - self.SMOOTHING) * self.s[i]
        self.weights[i], self.gradients[i] = p.detach().clone(), g.clone()
        return size

    def threshold(self, sizes: list[float]) -> float:
        """``τ = τ₀ + a·(σ/μ)`` of the gradients' norms, clamped."""
        mean = sum(sizes) / len(sizes)
        spread: float = (sum((size - mean) ** 2 for size in sizes) / len(sizes)) ** 0.5
        return min(max(self.TAU + self.ADAPT * spread / (mean + self.EPS), self.LEAST), self.MOST)

    def protect(self, i: int, p: Tensor, tau: float) -> None:
        """Scale the gradient, and record the reduction of its norm."""
        assert p.grad is not None
        whole = p.grad.clone()
        if self.s[i] > tau:
            p.grad = p.grad * (1 - self.s[i])
        self.protected[i] = 1 - read(torch.norm(p.grad)) / (read(torch.norm(whole)) + self.EPS)

    def copies(self) -> list[Tensor]:
        """Copies of weights and gradients in host memory."""
        return [t.detach().clone().cpu() for t in (*self.W, *self.G)]

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        """End a task: nothing is stored of it; the history is filled to its length."""
        length = self.history.maxlen or 0
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if length * 2 * sum(p.nbytes for p in self.W) > memory / 2:
            raise ValueError(f"Expected a history of fewer steps, half of the machine's memory holds, got {length}.")
        self.history.extend(self.copies() for _ in range(length))

    @override
    def tensors(self) -> Iterable[Tensor]:
        return [*self.weights, *self.gradients, *(t for copies in self.history for t in copies)]
