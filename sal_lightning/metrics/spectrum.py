"""Percent of weights in one band of the stability spectrum."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

Band = Literal["protected", "neutral", "volatile"]


class BandPercent(Metric):
    """Percent of weights in ``band``, from (protected, neutral, volatile) counts; NaN before any update.

    >>> percent = BandPercent("neutral")
    >>> percent.update(torch.tensor([1.0, 3.0, 4.0]))
    >>> percent.compute()
    tensor(37.5000)
    """

    full_state_update = False
    is_differentiable = False
    counts: Tensor

    def __init__(self, band: Band, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if band not in get_args(Band):
            raise ValueError(f"Expected band to be one of {get_args(Band)}, got {band!r}.")
        self.band = get_args(Band).index(band)
        self.add_state("counts", torch.zeros(3, dtype=torch.double), dist_reduce_fx="sum")

    def update(self, counts: Tensor) -> None:
        """Add counts of shape (3,)."""
        self.counts += counts.to(self.counts)

    def compute(self) -> Tensor:
        """The percentage, a scalar in [0, 100], single precision."""
        return (100 * self.counts[self.band] / self.counts.sum()).float()
