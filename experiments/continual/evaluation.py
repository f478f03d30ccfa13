"""Accuracy on every task seen, at each end of a task and as often between as asked."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from experiments.continual.batches import StreamData
from experiments.continual.metrics import Matrix, average, drift
from experiments.continual.model import MLP
from experiments.continual.streams import Task


class Point(NamedTuple):
    """Accuracy on each task seen so far, after this many steps."""

    step: int
    accuracy: list[float]


@contextmanager
def evaluating(model: L.LightningModule) -> Iterator[None]:
    """Evaluation mode and no gradients; training mode comes back if it was on."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def accuracy(model: MLP, task: Task) -> float:
    """Share of the task's test set that the outputs in play get right."""
    logits = model(task.see(task.test_x).to(model.device))[:, task.classes]
    guesses = logits.argmax(1).cpu() + task.classes.start
    return float((guesses == task.test_y).float().mean())


def summary(matrix: Matrix) -> dict[str, float]:
    """What goes to the loggers at the end of a task.

    >>> summary([[1.0], [0.5, 0.9]])
    {'accuracy/task1': 0.5, 'accuracy/task2': 0.9, 'accuracy/average': 0.7}
    """
    tasks = {f"accuracy/task{number}": value for number, value in enumerate(matrix[-1], 1)}
    return tasks | {"accuracy/average": average(matrix)}


class TaskAccuracy(Callback):
    """Fill ``matrix`` at the end of each task, and ``curve`` every so many steps as well.

    It knows the boundaries and only looks: whatever trains beside it is told nothing.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"Expected every to be at least 1 or None, got {every}.")
        self.every = every
        self._restart()

    def _restart(self) -> None:
        self.matrix: list[list[float]] = []
        self.curve: list[Point] = []
        self.drift: float | None = None
        self.seconds = 0.0
        self._first_features: Tensor | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data, step = trainer.datamodule, batch_idx + 1  # type: ignore[attr-defined]
        ended = step % data.steps == 0
        if ended or (self.every and step % self.every == 0):
            started = time.perf_counter()
            with evaluating(pl_module):
                self._look(cast(MLP, pl_module), data, step, ended)
            self.seconds += time.perf_counter() - started
        if ended:
            for logger in trainer.loggers:
                logger.log_metrics(summary(self.matrix), batch_idx)

    def _look(self, model: MLP, data: StreamData, step: int, ended: bool) -> None:
        tasks = data.stream.tasks[: (step - 1) // data.steps + 1]
        accuracies = [accuracy(model, task) for task in tasks]
        self.curve.append(Point(step, accuracies))
        if ended:
            self.matrix.append(accuracies)
            self._follow_features(model, data.stream.tasks)

    def _follow_features(self, model: MLP, tasks: tuple[Task, ...]) -> None:
        first = tasks[0]
        if len(self.matrix) not in (1, len(tasks)):
            return
        features = model.features(first.see(first.test_x).to(model.device))
        if self._first_features is None:
            self._first_features = features
        else:
            self.drift = drift(self._first_features, features)
