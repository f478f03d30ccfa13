"""Histograms of the held and observed stability of each layer at one step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sal_lightning.communication import CommunicationLayer
from sal_lightning.rules.base import Rule
from sal_lightning.rules.scores import HIGH, LOW, Scores
from sal_lightning.stability import StabilitySpectrum

BINS = 20  # equal bins of stability in [0, 1]; the bounds of the bands are edges of bins
EDGES = tuple(i / BINS for i in range(BINS + 1))


class View(NamedTuple):
    """One layer; ``held`` and ``observed`` are numbers of trained weights in each of BINS bins from 0 to 1."""

    grain: str
    weights: int
    held: tuple[float, ...]
    observed: tuple[float, ...]


def histogram(scores: Sequence[Scores]) -> Tensor:
    """Numbers of weights in each bin of stability: (BINS,).

    >>> histogram([Scores(torch.tensor([0.0, 0.02, 1.0]), 10.0)])[[0, 1, -1]]
    tensor([20.,  0., 10.])
    """
    counts = [
        size * torch.bincount((s.flatten() * BINS).long().clamp(0, BINS - 1), minlength=BINS) for s, size in scores
    ]
    return torch.stack(counts).sum(0)


def banded(counts: Sequence[float]) -> StabilitySpectrum:
    """The spectrum of a histogram.

    >>> banded([1] * BINS)
    StabilitySpectrum(protected=30.0, neutral=40.0, volatile=30.0)
    """
    low, high = round(LOW * BINS), round(HIGH * BINS)
    percent = 100 / max(sum(counts), 1e-30)
    volatile, protected = percent * sum(counts[:low]), percent * sum(counts[high:])
    return StabilitySpectrum(protected, percent * sum(counts[low:high]), volatile)


def views(layers: Sequence[CommunicationLayer]) -> dict[str, View]:
    """Every trained layer by name; layers of one name under several optimizers are added."""
    found = [(rule, pair) for layer in layers for rule, pair in _histograms(layer)]
    if not found:
        return {}
    counts = torch.stack([pair for _, pair in found]).tolist()  # a single copy from the device
    seen: dict[str, View] = {}
    for (rule, _), (held, observed) in zip(found, counts, strict=True):
        view = View(rule.grain, rule.trained(), tuple(held), tuple(observed))
        seen[rule.name] = _sum(seen[rule.name], view) if rule.name in seen else view
    return seen


def whole(seen: dict[str, View]) -> View:
    """The sum over all layers."""
    first, *others = seen.values()
    for view in others:
        first = _sum(first, view)
    return first


def _histograms(layer: CommunicationLayer) -> list[tuple[Rule, Tensor]]:
    settled = {} if layer.collector.analyzer is None else layer.collector.analyzer.scores()
    pairs = []
    for rule in layer.rules:
        if rule.learns:
            held = histogram(rule.stabilities())
            pairs.append((rule, torch.stack([held, histogram(_observed(rule, settled)).to(held.device)])))
    return pairs


def _observed(rule: Rule, settled: dict[str, Tensor]) -> list[Scores]:
    """Scores of the rule's sampled weights; those not sampled yet have stability 0."""
    trained = {name: p for name, p in rule.parameters.items() if p.requires_grad}
    parts = [(settled.get(name, torch.zeros(1, device=p.device)), p) for name, p in trained.items()]
    return [Scores(s, rule.counted(p) / max(s.numel(), 1)) for s, p in parts]


def _sum(a: View, b: View) -> View:
    held, observed = (tuple(x + y for x, y in zip(*pair, strict=True)) for pair in ((a.held, b.held), (a[3], b[3])))
    return View(a.grain, a.weights + b.weights, held, observed)
