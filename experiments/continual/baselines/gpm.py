"""Gradient projection memory (Saha, Garg & Roy 2021), and its scaled form (Saha & Roy 2023)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from experiments.continual.baselines.base import Baseline
from experiments.continual.baselines.layers import extended, gradient, linear, set_gradient
from experiments.continual.streams import Task

SAMPLES = 300  # samples of a task whose inputs of a layer are kept
FIRST, OTHERS = 0.95, 0.99  # share of their energy that the memory covers: first layer, others


def extend(memory: Tensor, X: Tensor, share: float) -> Tensor:
    """Add the fewest directions to an orthonormal basis (d, k) with which it covers a share of the energy of X (n, d).

    They are the first right singular vectors of what the memory does not cover yet.
    """
    rest = X - X @ memory @ memory.mT
    _, S, Vh = torch.linalg.svd(rest, full_matrices=False)
    total = X.square().sum()
    covered = 1 - (rest.square().sum() - torch.cat([S.new_zeros(1), S.square().cumsum(0)])) / total
    number = int((covered[:-1] < share).sum())
    return torch.cat([memory, Vh[:number].mT], 1)


def importance(memory: Tensor, X: Tensor, alpha: float) -> Tensor:
    """Importance of each direction for inputs X (n, d): ``(α + 1) σ / (α σ + max σ)``, with its length σ in X."""
    sigma: Tensor = torch.linalg.vector_norm(X @ memory, dim=0)
    return (alpha + 1) * sigma / (alpha * sigma + sigma.max())


class GPM(Baseline):
    """Gradients have no part in the directions that inputs of earlier tasks used; the last layer's neither.

    Args:
        shares: share of the energy of a task's inputs that the memory covers, in the first layer and in others.
        scale: None, or α of the scaled form, which takes out the importance of each direction instead of all; over
            tasks it adds up to at most 1.
        samples: samples of a task whose inputs are looked at.
    """

    def __init__(
        self, shares: Sequence[float] = (FIRST, OTHERS), scale: float | None = None, samples: int = SAMPLES
    ) -> None:
        self.shares, self.scale, self.samples = shares, scale, samples

    @override
    def begin(self) -> None:
        self.layers = linear(self.model)
        widths = [extended(m, m.weight[:1]).shape[1] for m in self.layers]
        self.bases = [m.weight.new_zeros(d, 0) for m, d in zip(self.layers, widths, strict=True)]
        self.weight = [m.weight.new_zeros(0) for m in self.layers]  # importance of each direction

    @override
    def before_step(self) -> None:
        if self.task:
            for layer, B, weight in zip(self.layers, self.bases, self.weight, strict=True):
                G = gradient(layer)
                set_gradient(layer, G - (G @ B * weight) @ B.mT)

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        for i, X in enumerate(self.inputs(tasks[-1])):
            self.bases[i] = extend(self.bases[i], X, self.shares[min(i, 1)])
            size = self.bases[i].shape[1]
            if self.scale is None:
                self.weight[i] = X.new_ones(size)
            else:
                old = torch.cat([self.weight[i], X.new_zeros(size - len(self.weight[i]))])
                self.weight[i] = (old + importance(self.bases[i], X, self.scale)).clamp(max=1)

    def inputs(self, task: Task) -> list[Tensor]:
        """Inputs of each layer, (samples, in), for random samples of the task."""
        found: dict[nn.Module, Tensor] = {}
        handles = [m.register_forward_pre_hook(lambda m, args: found.__setitem__(m, args[0])) for m in self.layers]
        rows = torch.randperm(len(task.train_x))[: self.samples]
        was_training = self.model.training
        try:
            self.model.eval()(task.see(task.train_x[rows]).to(self.model.device))
        finally:
            self.model.train(was_training)
            for handle in handles:
                handle.remove()
        return [extended(m, found[m]) for m in self.layers]

    @override
    def tensors(self) -> Iterable[Tensor]:
        return [*self.bases, *self.weight]
