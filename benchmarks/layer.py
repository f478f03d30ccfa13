"""One linear layer in training, with or without SAL, and the time of each part of a step."""

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
    """Seconds per step, of one step or as a mean."""

    passes: float  # forward and backward
    analyze: float
    protect: float
    step: float  # of the optimizer


@contextmanager
def held_rank(rank: int) -> Iterator[None]:
    """Set the rank of layers covered within this context, by patching constants of ``rules.subspace``."""
    before = subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK
    subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK = 1.0, 1, rank
    try:
        yield
    finally:
        subspace.RANK, subspace.MIN_RANK, subspace.MAX_RANK = before


class Layer:
    """A linear layer in training, with or without SAL."""

    def __init__(self, width: int, device: str, rank: int | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(width, width).to(device)
        self.adam = Adam(self.net.parameters())
        self.comm: CommunicationLayer | None = None
        if rank is not None:
            with held_rank(rank):
                self.comm = CommunicationLayer(self.net, self.adam)

    def settle(self) -> None:
        """Consolidate, then train until the window has left its dense phase."""
        rows = inputs(WARMUP + SETTLE, ROWS, self.net.in_features, device=self.net.weight.device)
        for i, x in enumerate(rows):
            if i == WARMUP and self.comm:
                self.comm.consolidate()
            self.train(x)

    def train(self, x: Tensor) -> Parts:
        """Take one step; returns the time of its parts."""
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
    """Random inputs of decaying energy, since white noise has no dominant directions to hold."""
    return torch.randn(*shape, device=device) / torch.arange(1, shape[-1] + 1, device=device).sqrt()


def now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def mean(parts: Sequence[Parts]) -> Parts:
    return Parts(*map(fmean, zip(*parts, strict=True)))
