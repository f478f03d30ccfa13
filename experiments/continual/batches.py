"""One stream as one Lightning data module: the tasks follow one another, and no boundary shows from outside."""

from functools import cached_property
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from experiments.continual.data import load
from experiments.continual.streams import Stream, StreamName, Task, make


class Batch(NamedTuple):
    """Inputs, labels, and the outputs that take part."""

    x: Tensor
    y: Tensor
    classes: slice


def draw(task: Task, steps: int, batch: int, seed: int, index: int) -> Tensor:
    """Rows of every batch of a task, with replacement; the same for every method."""
    generator = torch.Generator().manual_seed(1000 * seed + index)
    return torch.randint(len(task.train_x), (steps, batch), generator=generator)


class StreamBatches(Dataset[Batch]):
    """Item ``i`` is the batch of global step ``i``."""

    def __init__(self, stream: Stream, steps: int, batch: int, seed: int) -> None:
        self.stream, self.steps = stream, steps
        self.rows = [draw(task, steps, batch, seed, t) for t, task in enumerate(stream.tasks)]

    def __len__(self) -> int:
        return len(self.rows) * self.steps

    @override
    def __getitem__(self, step: int) -> Batch:
        t, i = divmod(step, self.steps)
        task, rows = self.stream.tasks[t], self.rows[t][i]
        return Batch(task.see(task.train_x[rows]), task.train_y[rows], task.classes)


class StreamData(L.LightningDataModule):
    """The whole stream as one epoch, ``steps`` batches a task."""

    def __init__(
        self,
        stream: StreamName = "split-domain",
        data: str = "mnist",
        steps: int = 500,
        batch: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(steps, batch) < 1:
            raise ValueError(f"Expected steps and batch of at least 1, got steps={steps}, batch={batch}.")
        self.kind: StreamName = stream
        self.data, self.steps, self.batch, self.seed = data, steps, batch, seed

    @cached_property
    def stream(self) -> Stream:
        """The tasks, read when first asked for."""
        return make(self.kind, load(self.data), self.seed)

    @property
    def inputs(self) -> int:
        """How many inputs the network needs."""
        return self.stream.inputs

    @property
    def outputs(self) -> int:
        """How many outputs the network needs."""
        return self.stream.outputs

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(StreamBatches(self.stream, self.steps, self.batch, self.seed), batch_size=None)
