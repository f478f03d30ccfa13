"""A stream as a Lightning data module: consecutive tasks without visible boundaries."""

from functools import cached_property
from typing import NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from experiments.continual.data import load
from experiments.continual.streams import Stream, StreamName, make


class Batch(NamedTuple):
    """Inputs, labels, and the active outputs."""

    x: Tensor
    y: Tensor
    classes: slice


class StreamBatches(Dataset[Batch]):
    """Item ``i`` is the batch of global step ``i``, drawn with replacement, identical for every method.

    ``joint`` draws from all tasks at every step.
    """

    def __init__(self, stream: Stream, steps: int, batch: int, seed: int, joint: bool = False) -> None:
        self.stream, self.steps, self.batch, self.seed, self.joint = stream, steps, batch, seed, joint

    def __len__(self) -> int:
        return len(self.stream.tasks) * self.steps

    @override
    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(1_000_000 * self.seed + step)
        shares = torch.ones(len(self.stream.tasks)) if self.joint else self.stream.shares(step, self.steps)
        if self.stream.one_a_batch:
            shares = F.one_hot(torch.multinomial(shares, 1, generator=generator)[0], len(shares)).float()
        chosen = torch.multinomial(shares, self.batch, replacement=True, generator=generator)
        parts = []
        for t, n in zip(*(found.tolist() for found in torch.unique(chosen, return_counts=True)), strict=True):
            task = self.stream.tasks[t]
            rows = torch.randint(len(task.train_x), (n,), generator=generator)
            parts.append((task.see(task.train_x[rows]), task.train_y[rows]))
        x, y = (torch.cat(column) for column in zip(*parts, strict=True))
        return Batch(x, y, task.classes)


class StreamData(L.LightningDataModule):
    """The whole stream as one epoch, with ``steps`` batches per task."""

    def __init__(
        self,
        stream: StreamName = "split-domain",
        data: str = "mnist",
        steps: int = 500,
        batch: int = 128,
        seed: int = 0,
        joint: bool = False,
    ) -> None:
        super().__init__()
        if min(steps, batch) < 1:
            raise ValueError(f"Expected steps and batch to be at least 1, got steps={steps}, batch={batch}.")
        self.kind: StreamName = stream
        self.data, self.steps, self.batch, self.seed, self.joint = data, steps, batch, seed, joint

    @cached_property
    def stream(self) -> Stream:
        """The stream, loaded on first access."""
        return make(self.kind, load(self.data), self.seed)

    @property
    def inputs(self) -> int:
        """Number of inputs of the network."""
        return self.stream.inputs

    @property
    def outputs(self) -> int:
        """Number of outputs of the network."""
        return self.stream.outputs

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        batches = StreamBatches(self.stream, self.steps, self.batch, self.seed, self.joint)
        return DataLoader(batches, batch_size=None)
