"""Feature drift, and means over seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


def drift(before: Tensor, after: Tensor) -> float:
    """Relative movement of features: ``|after - before| / |before|``.

    >>> import torch
    >>> drift(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 9.0]]))
    1.0
    """
    return float((after - before).norm() / before.norm())


class Estimate(NamedTuple):
    """A mean over seeds and its standard error, NaN for a single seed."""

    mean: float
    error: float

    def __str__(self) -> str:
        """Format with three digits, and with the error if defined."""
        return f"{self.mean:.3f}" if math.isnan(self.error) else f"{self.mean:.3f} ± {self.error:.3f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error.

    >>> print(estimate([0.8, 0.9, 1.0]), "|", estimate([0.5]))
    0.900 ± 0.058 | 0.500
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), error)
