"""Stability scores, and counts of weights in the bands of the spectrum."""

from typing import NamedTuple

import torch
from torch import Tensor

# A score above HIGH is protected, below LOW volatile, between (edges included) neutral.
LOW, HIGH = 0.3, 0.7


class Scores(NamedTuple):
    """Stability in [0, 1], of any shape, and the number of weights that each entry represents."""

    s: Tensor
    size: float | Tensor = 1.0


def bands(scores: Tensor, size: float | Tensor = 1.0) -> Tensor:
    """Count the scores (any shape), each for ``size`` weights, as (protected, neutral, volatile): a tensor (3,).

    >>> bands(torch.tensor([0.9, 0.7, 0.5, 0.1]))
    tensor([1., 2., 1.])
    """
    high, low = (scores > HIGH).sum(), (scores < LOW).sum()
    return torch.stack([high, scores.numel() - high - low, low]).float() * size
