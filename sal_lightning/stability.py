"""Stability of weights from three streaming signals, and the spectrum of a network."""

import hashlib
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_lightning.coverage import owned
from sal_lightning.distributed import local, sharded
from sal_lightning.rules.scores import bands

BETA = 0.98  # the signals average over about fifty steps
SAMPLE = 2048  # weights sampled per tensor
_TINY = 1e-30


class StabilitySpectrum(NamedTuple):
    """Percent of weights that are protected, neutral and volatile; sums to 100.

    >>> print(StabilitySpectrum(12.0, 71.0, 17.0))
    {'protected': 12%, 'neutral': 71%, 'volatile': 17%}
    """

    protected: float
    neutral: float
    volatile: float

    def __str__(self) -> str:
        return (
            f"{{'protected': {self.protected:.0f}%, 'neutral': {self.neutral:.0f}%, 'volatile': {self.volatile:.0f}%}}"
        )


def spectrum(counts: Tensor) -> StabilitySpectrum:
    """The spectrum of (protected, neutral, volatile) counts; 100 % volatile if all are zero.

    >>> spectrum(torch.tensor([1.0, 2.0, 1.0]))
    StabilitySpectrum(protected=25.0, neutral=50.0, volatile=25.0)
    >>> spectrum(torch.zeros(3))
    StabilitySpectrum(protected=0.0, neutral=0.0, volatile=100.0)
    """
    protected, neutral, volatile = counts.double().tolist()
    whole = protected + neutral + volatile
    if not whole:
        return StabilitySpectrum(0.0, 0.0, 100.0)
    return StabilitySpectrum(100 * protected / whole, 100 * neutral / whole, 100 * volatile / whole)


class Signals(NamedTuple):
    """Signals of n weights, each (n,) in [0, 1], 1 = settled; invariant to the scale of weights and gradients."""

    change: Tensor  # 1 − |net displacement| / path length
    consistency: Tensor  # 1 − |mean g| / mean |g|
    variance: Tensor  # 1 − variance / variance of a free random walk with the same steps


def signals(moved: Tensor, path: Tensor, push: Tensor, force: Tensor, spread: Tensor, step: Tensor) -> Signals:
    """The signals from running means of Δw, |Δw|, g, |g|, (w − mean w)² and Δw², each (n,).

    A weight without movement and gradient is settled: 1 in each signal.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> signals(zero, zero, zero, zero, zero, zero)
    Signals(change=tensor([1.]), consistency=tensor([1.]), variance=tensor([1.]))
    >>> signals(one, one, one, one, 1e6 * one, one).change
    tensor([0.])
    """
    walk = step * BETA**2 / (1 - BETA**2)
    return Signals(
        1 - moved.abs() / path.clamp(min=_TINY),
        1 - push.abs() / force.clamp(min=_TINY),
        1 - (spread / walk.clamp(min=_TINY)).clamp(max=1),
    )


class StabilityAnalyzer:
    """Measures the stability of a fixed random sample of weights of any model.

    Call ``update()`` after ``backward()``, at every step or at every n-th one. Memory and time per call are constant.

    Args:
        model: the module to measure.
        optimizer: restricts the measurement to the parameters of this optimizer.
        sample: number of weights sampled per tensor; all of a smaller tensor.
        seed: seed of the sample, which is the same on every machine.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | None = None, sample: int = SAMPLE, seed: int = 0
    ) -> None:
        self.sample, self.seed = sample, seed
        self.parameters: dict[str, nn.Parameter] = {}
        self.places: dict[str, Tensor] = {}
        # All tensors concatenated; rows: last w, mean w, then the six running means of `signals`.
        self.joint = torch.zeros(8, 0)
        self.means: dict[str, Tensor] = {}  # views of `joint`, for each tensor that has had a gradient
        self.watch(owned(model, optimizer))

    def watch(self, parameters: dict[str, nn.Parameter]) -> None:
        """Also sample these parameters, by name; complex and integer ones are ignored."""
        for name, p in parameters.items():
            if self.parameters.get(name) is not p and p.is_floating_point():
                self.means.pop(name, None)  # the means of a replaced parameter
                numbers = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:7])
                at = torch.randperm(local(p).numel(), generator=torch.Generator().manual_seed(numbers))
                self.parameters[name], self.places[name] = p, at[: self.sample].to(p.device)
        self._lay_out(self.means)

    @torch.no_grad()
    def update(self, unit: float = 1.0) -> None:
        """Update the running means with the current weights and gradients; parameters without a gradient are skipped.

        Args:
            unit: the factor by which the gradients are scaled.
        """
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        if not names:
            return
        w = [self._sampled(self.parameters[name].detach(), name) for name in names]
        g = [self._sampled(self.parameters[name].grad, name) for name in names]
        for name, first in zip(names, w, strict=True):
            if name not in self.means:
                self.means[name] = self.joint[:, self._columns[name]]
                self.means[name][:2] = first
        if len(names) == len(self.parameters):
            _take(self.joint, torch.cat(w), torch.cat(g) / unit)
        else:
            for name, x, y in zip(names, w, g, strict=True):
                _take(self.means[name], x, y / unit)

    def scores(self) -> dict[str, Tensor]:
        """The mean of the three signals of the sampled weights, (n,) in [0, 1], for each measured tensor."""
        return {name: torch.stack(signals(*means[2:])).mean(0) for name, means in self.means.items()}

    def bands(self) -> Tensor:
        """Counts of trainable weights that are (protected, neutral, volatile): (3,).

        Weights that were not measured yet count as volatile.
        """
        scores, unseen = self.scores(), torch.zeros(1, device=self.joint.device)
        seen = [(scores.get(name, unseen), p.numel()) for name, p in self.parameters.items() if p.requires_grad]
        parts = [bands(s, size / max(len(s), 1)) for s, size in seen]
        return torch.stack(parts).cpu().double().sum(0) if parts else torch.zeros(3, dtype=torch.double)

    def classify(self) -> StabilitySpectrum:
        """Percent of the trainable weights that are protected, neutral and volatile."""
        return spectrum(self.bands())

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by parameter name: ``places`` (sampled indices, (n,)) and ``means`` (8, n)."""
        # Each process samples its own shard of a sharded tensor.
        means = {name: means.clone() for name, means in self.means.items() if not sharded(self.parameters[name])}
        return {"places": {name: self.places[name] for name in means}, "means": means}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from a saved state of the same model."""
        whole = {name for name, p in self.parameters.items() if not sharded(p)}
        at, known = state["places"], {name: means for name, means in state["means"].items() if name in whole}
        # A tensor that has become smaller was replaced.
        known = {name: m for name, m in known.items() if all(at[name] < self.parameters[name].numel())}
        for name in known:
            self.places[name] = state["places"][name].to(self.parameters[name].device)
        self._lay_out(known)

    def _lay_out(self, means: dict[str, Tensor]) -> None:
        ends = list(accumulate(len(at) for at in self.places.values()))
        self._columns = {n: slice(end - len(self.places[n]), end) for n, end in zip(self.places, ends, strict=True)}
        device = next((p.device for p in self.parameters.values()), None)
        self.joint = torch.zeros(8, ends[-1] if ends else 0, device=device)
        for name, kept in means.items():
            self.joint[:, self._columns[name]] = kept.to(self.joint.device)
        self.means = {name: self.joint[:, self._columns[name]] for name in means}

    def _sampled(self, x: Tensor | None, name: str) -> Tensor:
        assert x is not None
        x = local(x)
        return (x.to_dense() if x.is_sparse else x).flatten()[self.places[name]].float()


def _take(means: Tensor, w: Tensor, g: Tensor) -> None:
    last, centre, g = *means[:2], g.nan_to_num(0.0, 0.0, 0.0)
    moved = w - last
    new = torch.stack([moved, moved.abs(), g, g.abs(), (w - centre).square(), moved.square()])
    means[2:].lerp_(new, 1 - BETA)
    centre.lerp_(w, 1 - BETA)
    last.copy_(w)
