"""One linear layer in training, with SAL or without, and the time that each part of a step takes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam

from sal_lightning import CommunicationLayer
from sal_lightning.rules import subspace

WARMUP, SETTLE, ROWS = 4, 20, 128  # untimed steps before and after consolidating, on batches of ROWS


class Parts(NamedTuple):
    """Seconds of one step, or of the mean one."""

    passes: float  # forward and backward
    analyze: float
    protect: float
    step: float  # of the optimizer


@contextmanager
def held_rank(rank: int) -> Iterator[None]:
    """Layers that are covered meanwhile keep so many directions: the one place that reaches into the engine."""
    before = subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK
    subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK = 1.0, 1, rank
    try:
        yield
    finally:
        subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK = before


class Layer:
    """A linear layer in training, with SAL or without."""

    def __init__(self, width: int, device: str, rank: int | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(width, width).to(device)
        self.adam = Adam(self.net.parameters())
        self.comm: CommunicationLayer | None = None
        if rank is not None:
            with held_rank(rank):
                self.comm = CommunicationLayer(self.net, self.adam)

    def settle(self) -> None:
        """Consolidate early, and go on until the window is no longer young."""
        rows = inputs(WARMUP + SETTLE, ROWS, self.net.in_features, device=self.net.weight.device)
        for i, x in enumerate(rows):
            if i == WARMUP and self.comm:
                self.comm.consolidate()
            self.train(x)

    def train(self, x: Tensor) -> Parts:
        """One step, and how long its parts took."""
        x = x.detach().requires_grad_()
        marks = [now(x)]
        self.net(x).square().mean().backward()
        marks.append(now(x))
        if self.comm:
            self.comm.analyze()
        marks.append(now(x))
        if self.comm:
            self.comm.protect()
        marks.append(now(x))
        self.adam.step()
        marks.append(now(x))
        self.adam.zero_grad()
        return Parts(*(b - a for a, b in pairwise(marks)))


def inputs(*shape: int, device: str | torch.device) -> Tensor:
    """Whose energy falls from input to input: white noise would have no directions to hold."""
    return torch.randn(*shape, device=device) / torch.arange(1, shape[-1] + 1, device=device).sqrt()


def now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def mean(parts: Sequence[Parts]) -> Parts:
    return Parts(*map(fmean, zip(*parts, strict=True)))
