"""Parts of a run: batches of a fit, the network with its loss, and callbacks for task ends."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from experiments.networks.networks import MOBILENET
from experiments.networks.objective import Example, example, loss, score
from experiments.networks.streams import Batch, Stream

LR, FINE = 1e-3, 1e-4  # learning rates: from random weights, and of a pre-trained network
PART = 500  # batch size for test images


class Steps(IterableDataset[Example]):
    """The batches of one fit, for this network; ``joint`` draws from all tasks in every step."""

    def __init__(self, stream: Stream, network: str, span: range, joint: bool) -> None:
        self.stream, self.network, self.span, self.joint = stream, network, span, joint

    @override
    def __iter__(self) -> Iterator[Example]:
        for step in self.span:
            noise = self.stream.generator(step + self.stream.length)  # independent of the draw of the images
            yield example(self.network, self.stream.at(step, self.joint), noise)

    def loader(self) -> DataLoader[Example]:
        """A data loader for Lightning."""
        return DataLoader(self, batch_size=None)


class Learner(L.LightningModule):
    """Trains a network with Adam, in its current mode."""

    def __init__(self, name: str, net: nn.Module) -> None:
        super().__init__()
        self.name, self.net = name, net

    @override
    def training_step(self, batch: Example, batch_idx: int) -> Tensor:
        return loss(self.name, self.net(*batch.given), batch.target)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=FINE if self.name == MOBILENET else LR)

    def answers(self, tests: Batch) -> tuple[Tensor, Tensor]:
        """The outputs for test images, in evaluation mode, and the targets; noise is the same in each call."""
        given, target = example(self.name, tests, torch.Generator().manual_seed(0))
        with evaluating(self.net):
            out = torch.cat([self.net(*part) for part in zip(*(torch.split(x, PART) for x in given), strict=True)])
        return out, target

    def score(self, tests: Batch) -> float:
        """The score on test images."""
        return score(self.name, *self.answers(tests))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Context manager: evaluation mode without gradients; the mode of each module is restored at its end."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class Scores(Callback):
    """The score on each task's tests when it was just learned (``learned``) and at the end (``kept``).

    Args:
        stream: the stream, with its task ends.
        samples: number of images of each test set.
    """

    def __init__(self, stream: Stream, samples: int) -> None:
        self.ends = [*stream.changes, stream.length]
        self.tests = [*(stream.old(samples) if stream.changes else []), stream.new(samples)]
        self.learned: list[float] = []
        self.kept: list[float] = []
        self.step = 0

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step += 1
        if self.step not in self.ends:
            return
        learner, task = cast(Learner, pl_module), self.ends.index(self.step)
        self.learned.append(learner.score(self.tests[task]))
        if self.step == self.ends[-1]:
            self.kept = [*(learner.score(tests) for tests in self.tests[:-1]), self.learned[-1]]


class Tell(Callback):
    """Calls ``end_task`` before the first batch of each task but the first; steps are counted over all fits."""

    def __init__(self, end_task: Callable[[], None], changes: Sequence[int]) -> None:
        self.end_task, self.changes = end_task, changes
        self.step = 0

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.step in self.changes:
            self.end_task()
        self.step += 1
