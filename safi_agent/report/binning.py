"""Reduce long series to a bounded number of bins that cover every turn."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

NONE = math.nan  # marks a turn without a figure in an array


class Bin(NamedTuple):
    """Turns ``first`` to ``last`` of a series: the number of figures, and their mean, minimum and maximum."""

    first: int
    last: int
    known: int
    mean: float | None
    low: float | None
    high: float | None


def bins(at: Sequence[int], figures: Sequence[float], most: int) -> list[Bin]:
    """At most ``most`` bins of nearly equal size; ``at`` numbers the turns, NaN stands for no figure.

    >>> bins([1, 2, 3], [1.0, 3.0, NONE], 2)
    [Bin(first=1, last=1, known=1, mean=1.0, low=1.0, high=1.0), \
Bin(first=2, last=3, known=1, mean=3.0, low=3.0, high=3.0)]

    Raises:
        ValueError: the two have different lengths, or ``most`` is below 1.
    """
    if len(at) != len(figures):
        raise ValueError(f"figures: expected one for each of {len(at)} turns, got {len(figures)}.")
    if most < 1:
        raise ValueError(f"most: expected at least 1, got {most}.")
    count = min(most, len(at))
    edges = [i * len(at) // count for i in range(count + 1)] if count else []
    return [_bin(at[start:end], figures[start:end]) for start, end in pairwise(edges)]


def _bin(at: Sequence[int], figures: Sequence[float]) -> Bin:
    present = [figure for figure in figures if not math.isnan(figure)]
    if not present:
        return Bin(at[0], at[-1], 0, None, None, None)
    return Bin(at[0], at[-1], len(present), math.fsum(present) / len(present), min(present), max(present))
