"""Accuracy on every task so far, at the end of each task and optionally in between."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torchmetrics import MetricCollection
from typing_extensions import override

from experiments.continual.metrics import drift
from experiments.continual.model import MLP
from experiments.continual.streams import Task
from sal_lightning.metrics import (
    AverageAccuracy,
    BackwardTransfer,
    ContinualMetric,
    Forgetting,
    ForwardTransfer,
    LearningAccuracy,
    MinAccuracy,
    WorstAccuracy,
    WorstCaseAccuracy,
)

FIRST = 10  # steps at the start of a task, where earlier accuracies drop most
PART = 1000  # number of test samples used in between


class Point(NamedTuple):
    """Accuracy on each task so far, after a number of steps."""

    step: int
    accuracy: list[float]


@contextmanager
def evaluating(model: L.LightningModule) -> Iterator[None]:
    """Context manager: evaluation mode without gradients; the mode is restored at its end."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def accuracy(model: MLP, task: Task, samples: int | None = None) -> float:
    """Accuracy of the active outputs on the task's test set, or on its first samples."""
    logits = model(task.see(task.test_x[:samples]).to(model.device))[:, task.classes]
    guesses = logits.argmax(1).cpu() + task.classes.start
    return float((guesses == task.test_y[:samples]).float().mean())


MEASURES: dict[str, type[ContinualMetric]] = {
    "average": AverageAccuracy,
    "worst": WorstAccuracy,
    "just_learned": LearningAccuracy,
    "backward_transfer": BackwardTransfer,
    "forward_transfer": ForwardTransfer,
    "forgetting": Forgetting,
    "lowest": MinAccuracy,
    "worst_case": WorstCaseAccuracy,
}


class TaskAccuracy(Callback):
    """Measures each task's accuracy: on the whole test set at the end of each task, on a part of it in between.

    It uses the boundaries for measurement only; the method in training does not receive them.

    Args:
        every: measure also in the first ``FIRST`` steps of a task, and then every so many steps.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"Expected every to be at least 1 or None, got {every}.")
        self.every = every
        self.measures = MetricCollection({})

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.curve: list[Point] = []
        self.drift: float | None = None
        self.seconds = 0.0
        self._first_features: Tensor | None = None
        tasks = trainer.datamodule.stream.tasks  # type: ignore[attr-defined]
        self.measures = MetricCollection({name: kind(len(tasks)) for name, kind in MEASURES.items()})
        self._look(cast(MLP, pl_module), tasks, -1)

    @property
    def R(self) -> list[list[float]]:
        """Accuracy on task j after task i, for the tasks so far."""
        R = cast(ContinualMetric, self.measures["average"]).R
        return [row for row in R.tolist() if not math.isnan(row[0])]

    def summary(self) -> dict[str, float | None]:
        """All measures by name; None if undefined."""
        values = {name: float(value) for name, value in self.measures.compute().items()}
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        task, place = divmod(batch_idx, data.steps)
        ended, place = place + 1 == data.steps, place + 1
        if not (ended or (self.every and (place <= FIRST or place % self.every == 0))):
            return
        started = time.perf_counter()
        tasks = data.stream.tasks
        accuracies = self._look(cast(MLP, pl_module), tasks if ended else tasks[: task + 1], task, not ended)
        self.curve.append(Point(batch_idx + 1, accuracies[: task + 1]))
        if ended:
            self._follow_features(cast(MLP, pl_module), tasks, task)
            for logger in trainer.loggers:
                named = {f"accuracy/task{number}": value for number, value in enumerate(accuracies[: task + 1], 1)}
                logger.log_metrics(named | {"accuracy/average": math.fsum(named.values()) / len(named)}, batch_idx)
        self.seconds += time.perf_counter() - started

    def _look(self, model: MLP, tasks: Sequence[Task], task: int, part: bool = False) -> list[float]:
        with evaluating(model):
            found = [accuracy(model, t, PART if part else None) for t in tasks]
        self.measures.update(torch.tensor(found), task)
        return found

    def _follow_features(self, model: MLP, tasks: Sequence[Task], task: int) -> None:
        if task not in (0, len(tasks) - 1):
            return
        with evaluating(model):
            features = model.features(tasks[0].see(tasks[0].test_x).to(model.device))
        if self._first_features is None:
            self._first_features = features
        else:
            self.drift = drift(self._first_features, features)
