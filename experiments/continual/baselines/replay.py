"""Replay methods, which store samples; an upper bound for methods that do not."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from experiments.continual.baselines.base import Baseline
from experiments.continual.batches import Batch
from experiments.continual.model import Model
from experiments.continual.streams import Task


class Replay(Baseline):
    """Experience replay of a few stored samples per class; the new task has the weight ``1 / t``."""

    model: Model

    def __init__(self, budget: int = 100, batch: int = 128, seed: int = 0) -> None:
        self.budget, self.batch = budget, batch
        self.generator = torch.Generator().manual_seed(seed)

    @override
    def begin(self) -> None:
        self.samples: list[Batch] = []
        self.model.objective = self.rehearse

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        task = tasks[-1]
        kept = []
        for label in torch.unique(task.train_y):
            rows = (task.train_y == label).nonzero()[:, 0]
            kept.append(rows[torch.randperm(len(rows), generator=self.generator)[: self.budget]])
        rows = torch.cat(kept)
        self.samples.append(Batch(task.see(task.train_x[rows]), task.train_y[rows], task.classes))

    def rehearse(self, loss: Tensor, batch: Batch, logits: Tensor) -> Tensor:
        """The loss, combined with that on the memory."""
        if not self.samples:
            return loss
        share = 1 / (self.task + 1)
        return share * loss + (1 - share) * self.loss_on_memory()

    def loss_on_memory(self) -> Tensor:
        """The loss on a batch drawn in equal parts from all earlier tasks."""
        each = -(-self.batch // len(self.samples))
        losses = []
        for x, y, classes in self.samples:
            rows = torch.randint(len(x), (min(each, len(x)),), generator=self.generator)
            logits = self.model(x[rows].to(self.model.device))[:, classes]
            losses.append(F.cross_entropy(logits, y[rows].to(self.model.device) - classes.start))
        return torch.stack(losses).mean()


class AGEM(Replay):
    """Averaged gradient episodic memory (Chaudhry et al. 2019): steps must not increase the loss on the memory."""

    @override
    def begin(self) -> None:
        self.samples = []

    @override
    def before_step(self) -> None:
        if not self.samples:
            return
        with torch.enable_grad():
            R = torch.autograd.grad(self.loss_on_memory(), list(self.model.parameters()))
        G = self.G
        along = sum(((g * r).sum() for g, r in zip(G, R, strict=True)), torch.zeros(()))
        size = sum((r.square().sum() for r in R), torch.zeros(()))
        if along < 0 < size:  # the squared norm is 0 once the loss on the memory is 0
            torch._foreach_sub_(G, torch._foreach_mul(list(R), float(along / size)))
