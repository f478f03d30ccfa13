"""Mean shift: how far a batch of states has moved as one from past states, compared with what is usual.

Letters: ``x`` (n, d) states, ``μ`` (d,) the running mean of past ones.
"""

from typing import Any

import torch
from torch import Tensor

MEAN, USUAL = 0.99, 0.98  # the mean looks back over about a hundred steps, what is usual over about fifty
DEVIATIONS = 2.5  # of log m, above its mean: what is still usual
LEAST = 1e-4  # shares below it are no differences
_TINY = torch.finfo(torch.float32).tiny


def mean_shift(x: Tensor, mean: Tensor) -> Tensor:
    """``m = ‖mean(x − μ)‖² / mean ‖x − μ‖²``: the share of the energy about μ that all states have in common.

    In [0, 1]; of n independent states of an unchanged distribution it is about 1/n.

    >>> mean_shift(torch.tensor([[2.0, 1.0], [2.0, -1.0]]), torch.zeros(2))
    tensor(0.8000)
    """
    x = x - mean
    return (x.mean(0).square().sum() / x.square().sum(1).mean().clamp(min=_TINY)).clamp(0, 1)


class MeanShift:
    """Novelty of a batch as ``1 − u/m``, with u the largest mean shift that is usual.

    ``log u = E[log m] + 2.5 σ[log m]`` over past batches. A network maps new data onto the directions that it has, so
    that the energy outside of past directions hardly rises at a change; but it moves its states together. The novelty
    is 0 while m is usual, 0.4 where it is 1.7 times u, and 1 before anything was seen. It does not depend on the scale
    or the rotation of states. Of a single state m is always 1: a batch needs at least two.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None  # μ before it is divided by its weight, (d,)
        self.weight = torch.zeros(())  # 1 − β^steps
        self.logs = torch.zeros(3)  # running sums of 1, log m and (log m)²

    def measure(self, x: Tensor) -> Tensor:
        """The novelty of states (n, d), a scalar in [0, 1]; no device is waited for."""
        if self.mean is None:
            return torch.ones((), device=x.device)
        m = mean_shift(x, self.mean / self.weight)
        average, square = self.logs[1:] / self.logs[0]
        usual = (average + DEVIATIONS * (square - average.square()).clamp(min=0).sqrt()).exp()
        new: Tensor = 1 - usual / m.clamp(min=LEAST)
        return new.clamp(0, 1)

    def update(self, x: Tensor, steps: int = 1) -> None:
        """Add states (n, d) that stand for so many steps."""
        if self.mean is None:
            self.mean, self.weight = torch.zeros_like(x[0]), torch.zeros((), device=x.device)
            # What is usual is not known yet: about 1/n, give or take a factor e.
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
        """What several processes average."""
        assert self.mean is not None, "nothing was seen yet"
        return [self.mean, self.weight, self.logs]

    def set_tensors(self, tensors: list[Tensor]) -> None:
        """Take what all processes have on average."""
        self.mean, self.weight, self.logs = tensors

    def state_dict(self) -> dict[str, Any]:
        """Tensors only; empty while nothing was seen."""
        return {} if self.mean is None else {"mean": self.mean, "weight": self.weight, "logs": self.logs}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue where another stood."""
        self.mean = None
        if state:
            self.set_tensors([state[name].to(device) for name in ("mean", "weight", "logs")])
