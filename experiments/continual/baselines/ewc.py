"""Elastic weight consolidation (Kirkpatrick et al. 2017), and online (Schwarz et al. 2018)."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from typing_extensions import override

from experiments.continual.baselines.base import QuadraticPenalty
from experiments.continual.baselines.importance import moments
from experiments.continual.model import MLP
from experiments.continual.streams import Task

SAMPLES = 12_000  # samples of a task used for its Fisher information


def fisher(model: MLP, task: Task) -> list[Tensor]:
    """The diagonal of the Fisher information, in expectation over the model's predictive distribution."""

    def scores(logits: Tensor) -> Iterator[Tensor]:
        log_p = logits[:, task.classes].log_softmax(1)
        # The square of √p ∂ log p is p (∂ log p)².
        yield from (log_p.detach().exp().sqrt() * log_p).unbind(1)

    return moments(model, task.see(task.train_x[:SAMPLES]), scores, power=2)


class OnlineEWC(QuadraticPenalty):
    """A single penalty towards the last task's weights, with the sum of all F."""

    def importance(self, tasks: Sequence[Task]) -> list[Tensor]:
        """F of the last task."""
        return fisher(cast(MLP, self.model), tasks[-1])

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        torch._foreach_add_(self.F, self.importance(tasks))
        self.move_anchor()


class EWC(OnlineEWC):
    """A penalty for each task, ``½ λ Σ_t F_t (W − W_t)²``.

    Up to a constant, their sum equals one penalty with the sum of all F towards the mean of all W_t weighted by F_t.
    """

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        for S, mean, F, w in zip(self.F, self.anchor, self.importance(tasks), self.W, strict=True):
            S += F
            mean += (w - mean) * (F / S.clamp(min=torch.finfo(S.dtype).tiny))


class BatchGradientEWC(QuadraticPenalty):
    """F is the mean squared batch gradient during the first task, which needs no further data."""

    steps = 0

    @override
    def before_step(self) -> None:
        super().before_step()
        if not self.task:
            torch._foreach_addcmul_(self.F, self.G, self.G)
            self.steps += 1

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        if self.task == 1:
            torch._foreach_mul_(self.F, 1 / self.steps)
        self.move_anchor()
