"""Mean shift: the common displacement of a batch of states from past states, relative to its usual size.

Notation: ``x`` (n, d) states, ``μ`` (d,) the running mean of past ones.
"""

from typing import Any

import torch
from torch import Tensor

MEAN, USUAL = 0.99, 0.98  # decay of μ (about a hundred steps) and of the moments of log m (about fifty)
DEVIATIONS = 2.5  # standard deviations of log m above its mean that are still usual
LEAST = 1e-4  # lower bound of m: smaller shares are rounding
_TINY = torch.finfo(torch.float32).tiny


def mean_shift(x: Tensor, mean: Tensor) -> Tensor:
    """``m = ‖mean(x − μ)‖² / mean ‖x − μ‖²``: the share of the energy about μ that is common to all states.

    In [0, 1]; of n independent states of an unchanged distribution it is about 1/n.

    >>> mean_shift(torch.tensor([[2.0, 1.0], [2.0, -1.0]]), torch.zeros(2))
    tensor(0.8000)
    """
    x = x - mean
    return (x.mean(0).square().sum() / x.square().sum(1).mean().clamp(min=_TINY)).clamp(0, 1)


class MeanShift:
    """Novelty of a batch as ``1 − u/m``, with u the largest mean shift that is usual.

    ``log u = E[log m] + 2.5 σ[log m]`` over past batches. A network maps new data onto directions that it already uses,
    so that the energy outside of past directions hardly rises at a change, but the mean of its states shifts. The
    novelty is 0 for m ≤ u, 0.4 for m = 1.7 u, and 1 before the first update. It is invariant to scale and rotation of
    the states. A batch needs at least two states: for a single one m is always 1.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None  # μ before it is divided by its weight, (d,)
        self.weight = torch.zeros(())  # 1 − β^steps
        self.logs = torch.zeros(3)  # running sums of 1, log m and (log m)²

    def measure(self, x: Tensor) -> Tensor:
        """The novelty of states (n, d), a scalar in [0, 1]; without synchronization."""
        if self.mean is None:
            return torch.ones((), device=x.device)
        m = mean_shift(x, self.mean / self.weight)
        average, square = self.logs[1:] / self.logs[0]
        usual = (average + DEVIATIONS * (square - average.square()).clamp(min=0).sqrt()).exp()
        new: Tensor = 1 - usual / m.clamp(min=LEAST)
        return new.clamp(0, 1)

    def update(self, x: Tensor, steps: int = 1) -> None:
        """Add states (n, d) that represent ``steps`` steps."""
        if self.mean is None:
            self.mean, self.weight = torch.zeros_like(x[0]), torch.zeros((), device=x.device)
            # Initial value of the moments: m of about 1/n, with a standard deviation of a factor e.
            log = -torch.log(torch.tensor(float(len(x)), device=x.device))
            self.logs = self._count(torch.zeros(3, device=x.device), log, steps, spread=1.0)
        else:
            log = mean_shift(x, self.mean / self.weight).clamp(min=LEAST).log()
            self.logs = self._count(self.logs, log, steps)
        keep = MEAN**steps
        self.mean = keep * self.mean + (1 - keep) * x.mean(0)
        self.weight = keep * self.weight + (1 - keep)

    @staticmethod
    def _count(logs: Tensor, log: Tensor, steps: int, spread: float = 0.0) -> Tensor:
        keep = USUAL**steps
        return keep * logs + (1 - keep) * torch.stack([torch.ones_like(log), log, log.square() + spread])

    def tensors(self) -> list[Tensor]:
        """Tensors that are averaged over processes."""
        assert self.mean is not None, "update() was not called yet"
        return [self.mean, self.weight, self.logs]

    def set_tensors(self, tensors: list[Tensor]) -> None:
        """Replace the tensors of ``tensors()``, in the same order."""
        self.mean, self.weight, self.logs = tensors

    def state_dict(self) -> dict[str, Any]:
        """State as tensors only; empty before the first update."""
        return {} if self.mean is None else {"mean": self.mean, "weight": self.weight, "logs": self.logs}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Load a state onto ``device``."""
        self.mean = None
        if state:
            self.set_tensors([state[name].to(device) for name in ("mean", "weight", "logs")])
