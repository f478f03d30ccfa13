"""Learning without forgetting (Li & Hoiem 2016)."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from experiments.continual.baselines.base import Baseline
from experiments.continual.model import Model
from experiments.continual.streams import Task

TEMPERATURE = 2.0


def imitation(logits: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy to the teacher's softened outputs, both (..., outputs)."""
    goal = (teacher / temperature).softmax(-1)
    return F.cross_entropy((logits / temperature).flatten(0, -2), goal.flatten(0, -2))


class LwF(Baseline):
    """Distillation from the network at the last boundary, on each batch, for the outputs of earlier tasks.

    If tasks are not known, these are all outputs. The new task has the weight ``1 / t``, the old ones the rest (van de
    Ven et al. 2022).
    """

    model: Model

    @override
    def begin(self) -> None:
        self.model.objective = self.imitate

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        self.heads = list({(task.classes.start, task.classes.stop): task.classes for task in tasks}.values())
        self.heads = self.heads or [slice(None)]
        self.teacher = copy.deepcopy(self.model.network()).eval().requires_grad_(False)

    def imitate(self, loss: Tensor, batch: Any, logits: Tensor) -> Tensor:
        """The loss with the distillation term."""
        if not self.task:
            return loss
        with torch.no_grad():
            goal = self.teacher(batch[0])
        old = torch.stack([imitation(logits[..., head], goal[..., head]) for head in self.heads]).mean()
        share = 1 / (self.task + 1)
        return share * loss + (1 - share) * old

    @override
    def tensors(self) -> Iterable[Tensor]:
        return [*self.teacher.parameters(), *self.teacher.buffers()] if self.task else []
