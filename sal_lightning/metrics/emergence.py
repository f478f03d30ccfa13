"""Means of an emergence field's measures over observations."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric


class FieldMetric(Metric):
    """Mean of one of the values that an ``EmergenceField`` measures; NaN before any update.

    Several in a ``MetricCollection`` share one state.
    """

    full_state_update = False
    is_differentiable = False
    column: ClassVar[int]
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(4, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, observed: Tensor | Sequence[float]) -> None:
        """Add one observation (4,), as returned by ``EmergenceField.observe`` or ``measure``."""
        self.total += torch.as_tensor(observed).to(self.total)
        self.count += 1

    def compute(self) -> Tensor:
        """The mean, a scalar in [0, 1], single precision."""
        return (self.total[self.column] / self.count).float()


class Coherence(FieldMetric):
    """Mean coherence of the observed batches.

    >>> metric = Coherence()
    >>> metric.update((1.0, 0.5, 0.25, False))
    >>> metric.update((0.5, 0.5, 0.25, True))
    >>> metric.compute()
    tensor(0.7500)
    """

    column = 0


class Novelty(FieldMetric):
    """Mean novelty: the share of a batch's energy outside the field."""

    column = 1


class Resonance(FieldMetric):
    """Mean resonance: the share of a batch's energy inside the field, weighted by the energy of each direction."""

    column = 2


class EmergenceRate(FieldMetric):
    """The share of observations in which something coherent was new."""

    column = 3
