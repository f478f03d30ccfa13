"""Elastic weight consolidation (Kirkpatrick et al. 2017) for networks of all kinds, told where tasks end."""

from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from experiments.networks.objective import example
from experiments.networks.streams import Batch, Stream
from experiments.networks.training import Learner, evaluating

ROWS = 300  # of a task, that its Fisher information is taken from


class EWC(Callback):
    """``G ← G + strength · F (W − W*)``; F is summed over tasks, W* are the weights at the end of the last one.

    F is the diagonal of the Fisher information, ``E[g²]`` over images of the task, g the gradient of one image's loss
    for a label drawn from what the network answers.
    """

    def __init__(self, stream: Stream, strength: float) -> None:
        self.stream, self.strength = stream, strength
        self.importance: list[Tensor] = []
        self.anchor: list[Tensor] = []

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx in self.stream.changes:
            self.consolidate(cast(Learner, pl_module), self.stream.changes.index(batch_idx))

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        for p, f, w in zip(pl_module.parameters(), self.importance, self.anchor, strict=False):  # none at first
            if p.grad is not None:
                p.grad += self.strength * f * (p.detach() - w)

    def consolidate(self, learner: Learner, number: int) -> None:
        """The task of this number has been learned."""
        task, generator = self.stream.tasks[number], torch.Generator().manual_seed(number)
        chosen = torch.randint(len(task.train_x), (ROWS,), generator=generator)
        parameters = list(learner.parameters())
        found = [torch.zeros_like(p) for p in parameters]
        with evaluating(learner.net), torch.enable_grad():
            for i in chosen:
                rows = Batch(task.see(task.train_x[i : i + 1]), task.train_y[i : i + 1])
                z = learner.net(*example(learner.name, rows, generator).given)
                label = torch.multinomial(z.detach().softmax(1), 1, generator=generator)[:, 0]
                for f, g in zip(found, torch.autograd.grad(F.cross_entropy(z, label), parameters), strict=True):
                    f += g.square() / ROWS
        self.importance = [a + b for a, b in zip(self.importance, found, strict=True)] if self.importance else found
        self.anchor = [p.detach().clone() for p in parameters]
