"""One norm relative to another: the held share of a gradient or an update, or relative drift."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class NormShare(Metric):
    """``sqrt(Σ part² / Σ whole²)`` over all updates; NaN before any, 0 where the whole is 0.

    >>> share = NormShare()
    >>> share.update(torch.tensor([9.0, 25.0]))
    >>> share.compute()
    tensor(0.6000)
    """

    full_state_update = False
    is_differentiable = False
    squares: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("squares", torch.zeros(2, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, squares: Tensor) -> None:
        """Add (part², whole²), a tensor of shape (2,)."""
        self.squares += squares.to(self.squares)
        self.count += 1

    def compute(self) -> Tensor:
        """The share, a scalar in single precision."""
        part, whole = self.squares
        share = torch.where(whole > 0, part / whole, torch.zeros_like(whole)).sqrt()
        return torch.where(self.count > 0, share, torch.nan).float()
