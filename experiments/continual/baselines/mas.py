"""Memory aware synapses (Aljundi et al. 2018)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from experiments.continual.baselines.base import QuadraticPenalty
from experiments.continual.baselines.importance import moments
from experiments.continual.streams import Task


class MAS(QuadraticPenalty):
    """``F`` is the sensitivity of the squared outputs: ``Σ_t mean |∂ ‖y‖² / ∂ W|``, with y the active outputs."""

    @override
    def learned(self, tasks: Sequence[Task]) -> None:
        task = tasks[-1]

        def scores(logits: Tensor) -> Iterator[Tensor]:
            yield logits[:, task.classes].square().mean(1)

        torch._foreach_add_(self.F, moments(self.model, task.see(task.train_x), scores, power=1))
        self.move_anchor()
