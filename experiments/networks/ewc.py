"""Elastic weight consolidation (Kirkpatrick et al. 2017) for networks of all kinds."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from experiments.continual.baselines.ewc import OnlineEWC
from experiments.continual.streams import Task
from experiments.networks.objective import example
from experiments.networks.streams import Batch
from experiments.networks.training import Learner, evaluating

ROWS = 300  # samples of a task used for its Fisher information


def fisher(learner: Learner, task: Task, seed: int) -> list[Tensor]:
    """The diagonal of the Fisher information, ``E[g²]`` over images of the task; g is the gradient of one image's loss.

    Labels are drawn from the network's predictive distribution.
    """
    generator = torch.Generator().manual_seed(seed)
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
    return found


class EWC(OnlineEWC):
    """``G ← G + Σ_t λ F_t (W − W*)``, W* the weights at the end of the last task; λ is part of the importance."""

    def __init__(self, strength: float) -> None:
        super().__init__(1.0)
        self.factor = strength

    @override
    def importance(self, tasks: Sequence[Task]) -> list[Tensor]:
        found = fisher(cast(Learner, self.model), tasks[-1], seed=len(tasks) - 1)
        return [self.factor * f for f in found]
