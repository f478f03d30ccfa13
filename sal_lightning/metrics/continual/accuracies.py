"""The measures as torchmetrics: each remembers the stream and makes one number of it."""

from torch import Tensor
from typing_extensions import override

from sal_lightning.metrics.continual.measures import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
    min_accuracy,
    worst_accuracy,
    worst_case_accuracy,
)
from sal_lightning.metrics.continual.stream import ContinualMetric


class AverageAccuracy(ContinualMetric):
    """Mean accuracy over the tasks reached, now: ``average_accuracy(R)``.

    >>> import torch
    >>> accuracy = AverageAccuracy(tasks=3)
    >>> accuracy.update(torch.tensor([0.9, 0.1, 0.1]), task=0)
    >>> accuracy.update(torch.tensor([0.5, 0.9, 0.1]), task=1)
    >>> accuracy.compute()
    tensor(0.7000)
    """

    @override
    def compute(self) -> Tensor:
        return average_accuracy(self.R)


class WorstAccuracy(ContinualMetric):
    """Accuracy now on the task that fares worst: ``worst_accuracy(R)``."""

    @override
    def compute(self) -> Tensor:
        return worst_accuracy(self.R)


class LearningAccuracy(ContinualMetric):
    """Mean accuracy on each task when just learned: ``learning_accuracy(R)``."""

    @override
    def compute(self) -> Tensor:
        return learning_accuracy(self.R)


class BackwardTransfer(ContinualMetric):
    """What later tasks did to earlier ones, below 0 for harm: ``backward_transfer(R)``."""

    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return backward_transfer(self.R)


class ForwardTransfer(ContinualMetric):
    """What earlier tasks did for those not yet trained: ``forward_transfer(R, start)``.

    It needs ``update(accuracy, task=-1)`` before any training, and accuracies on tasks to come.
    """

    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return forward_transfer(self.R, self.start)


class Forgetting(ContinualMetric):
    """How far earlier tasks are below their best: ``forgetting(R)``."""

    higher_is_better = False
    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return forgetting(self.R)


class MinAccuracy(ContinualMetric):
    """How low earlier tasks ever fell since each ended: ``min_accuracy(R, lowest)``.

    Update it at every step of training, or as often as can be afforded: a dip that was not measured does not count.
    """

    @override
    def compute(self) -> Tensor:
        return min_accuracy(self.R, self.lowest)


class WorstCaseAccuracy(ContinualMetric):
    """The last task as it is and earlier ones as low as they fell: ``worst_case_accuracy(R, lowest)``."""

    @override
    def compute(self) -> Tensor:
        return worst_case_accuracy(self.R, self.lowest)
