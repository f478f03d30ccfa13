"""Calibrate the probabilities of a judge, and choose the confidence from which on a finding is sure. Pure functions.

A finding agrees with a label if both call the value broken or both do not. Its confidence is the probability of that.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURES = torch.logspace(-1.3, 1.3, 131)  # 0.05 to 20
BINS = 10


def broken_probability(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """The probability of the score -1 under logits (n, 4) of the four scores: (n,)."""
    return (logits / temperature).softmax(-1)[..., 0]


def confidence(broken: Tensor) -> Tensor:
    """The probability of the more probable side, in [0.5, 1], given that of a broken value."""
    return torch.maximum(broken, 1 - broken)


def fit_temperature(logits: Tensor, broken: Tensor, weights: Tensor) -> float:
    """The temperature with the lowest mean log loss of broken or not, among 131 values from 0.05 to 20.

    Guo et al., *On Calibration of Modern Neural Networks* (2017), on the two sides that the confidence is about.

    Args:
        logits: of the four scores, (n, 4).
        broken: whether the value is broken, (n,) bool.
        weights: of the examples, (n,).
    """
    probabilities = broken_probability(logits[None], TEMPERATURES[:, None, None])
    truth = broken.to(probabilities).expand_as(probabilities)
    losses = F.binary_cross_entropy(probabilities.clamp(1e-6, 1 - 1e-6), truth, reduction="none")
    return float(TEMPERATURES[(losses * weights).sum(-1).argmin()])


def calibration_error(pairs: Iterable[tuple[float, bool]]) -> float | None:
    """Expected calibration error in [0, 1]: mean distance of confidence and agreement over ten bins of confidence.

    Args:
        pairs: the confidence of a finding in [0.5, 1], and whether it agrees with the label.

    >>> calibration_error([(0.75, True), (0.75, False), (1.0, True), (1.0, True)])
    0.125
    """
    bins: dict[int, list[tuple[float, bool]]] = {}
    for sure, agrees in pairs:
        bins.setdefault(min(BINS - 1, int((sure - 0.5) * 2 * BINS)), []).append((sure, agrees))
    count = sum(map(len, bins.values()))
    if not count:
        return None
    return sum(abs(sum(sure - agrees for sure, agrees in part)) for part in bins.values()) / count


def choose_confidence(pairs: Sequence[tuple[float, bool]], target: float) -> float | None:
    """The lowest confidence such that findings at or above it agree with labels at least as often as ``target``.

    That is required of the lower limit of their agreement (``lower_limit``), since a share of few examples may be high
    by chance. None if there is no such confidence, so that no finding is sure. Candidates are those in the data.

    Args:
        pairs: the confidence of a finding, and whether it agrees with the label.
        target: in (0, 1].

    >>> choose_confidence([*[(0.6, False)] * 9, *[(0.8, True)] * 20, *[(0.9, True)] * 20], 0.9)
    0.8
    """
    chosen, agreeing = None, 0
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    for count, (sure, agrees) in enumerate(ordered, 1):
        agreeing += agrees
        # Pairs of equal confidence are included together or not at all.
        last = count == len(ordered) or ordered[count][0] < sure
        if last and lower_limit(agreeing, count) >= target:
            chosen = sure
    return chosen


def lower_limit(agreeing: int, count: int) -> float:
    """The lower limit of a share, one standard error below it, by the score interval of Wilson (1927).

    >>> round(lower_limit(9, 10), 3), round(lower_limit(900, 1000), 3)
    (0.766, 0.89)
    """
    share = agreeing / count
    middle = share + 1 / (2 * count)
    return (middle - math.sqrt(share * (1 - share) / count + 1 / (4 * count**2))) / (1 + 1 / count)
