"""What has settled: three streaming signals of each weight, and the spectrum they make."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sal_lightning.rules.base import bands

BETA = 0.98  # the signals look back over about fifty steps
SAMPLE = 2048  # weights watched in each tensor
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
    """The spectrum of (protected, neutral, volatile) counts.

    >>> spectrum(torch.tensor([1.0, 2.0, 1.0]))
    StabilitySpectrum(protected=25.0, neutral=50.0, volatile=25.0)
    """
    percent = 100 * counts.double() / counts.sum()
    return StabilitySpectrum(*percent.tolist())


class Signals(NamedTuple):
    """Each (n,) in [0, 1], 1 = settled, whatever the scale of weights and gradients."""

    change: Tensor  # 1 − |net displacement| / path length: does it go anywhere?
    consistency: Tensor  # 1 − |mean g| / mean |g|: is it pushed one way?
    variance: Tensor  # 1 − variance / that of a free random walk with the same steps: does something hold it?


def signals(moved: Tensor, path: Tensor, push: Tensor, force: Tensor, spread: Tensor, step: Tensor) -> Signals:
    """The signals from running means: of Δw, |Δw|, g, |g|, (w − mean w)² and Δw².

    A weight that does not move and is not pushed is settled: 1 in each.

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
    """Watches a fixed random sample of weights of any model and reports how settled each is.

    Call ``observe()`` after ``backward()``, once a step; nothing grows with the number of steps.
    """

    def __init__(self, model: nn.Module, sample: int = SAMPLE, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
        self.places = {
            n: torch.randperm(p.numel(), generator=generator)[:sample].to(p.device) for n, p in self.parameters.items()
        }
        self.means: dict[str, Tensor] = {}  # (7, n) a tensor: w before, mean w, then the six of `signals`

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the weights as the last step left them, and the gradients of this one."""
        for name, p in self.parameters.items():
            if p.grad is None:
                continue
            at = self.places[name]
            g = (p.grad.to_dense() if p.grad.is_sparse else p.grad).flatten()[at].float()
            self._take(name, p.detach().flatten()[at].float(), g)

    def _take(self, name: str, w: Tensor, g: Tensor) -> None:
        if name not in self.means:
            self.means[name] = torch.stack([w, w, *torch.zeros(6, *w.shape, device=w.device)])
        last, centre = self.means[name][:2]
        moved = w - last
        new = torch.stack([moved, moved.abs(), g, g.abs(), (w - centre).square(), moved.square()])
        self.means[name][2:].lerp_(new, 1 - BETA)
        centre.lerp_(w, 1 - BETA)
        last.copy_(w)

    def scores(self) -> dict[str, Tensor]:
        """Of each tensor seen, the mean of the three signals of its sampled weights: (n,) in [0, 1]."""
        return {name: torch.stack(signals(*means[2:])).mean(0) for name, means in self.means.items()}

    def classify(self) -> StabilitySpectrum:
        """Percent of all weights that have settled, are between, still search; all of them search before the first."""
        counts = torch.zeros(3, dtype=torch.double)
        scores = self.scores()
        for name, p in self.parameters.items():
            s = scores.get(name, torch.zeros(1))
            counts += bands(s, p.numel() / len(s)).double().cpu()
        return spectrum(counts)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Tensors only."""
        return {"places": dict(self.places), "means": dict(self.means)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue where another analyzer of the same model stood."""
        for name, p in self.parameters.items():
            if name in state["means"]:
                self.places[name] = state["places"][name].to(p.device)
                self.means[name] = state["means"][name].to(p.device).clone()
