"""The measures of continual learning as torchmetrics."""

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
    """Current mean accuracy over the tasks reached: ``average_accuracy(R)``.

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
    """Current accuracy on the worst task: ``worst_accuracy(R)``."""

    @override
    def compute(self) -> Tensor:
        return worst_accuracy(self.R)


class LearningAccuracy(ContinualMetric):
    """Mean accuracy on each task just after its own training: ``learning_accuracy(R)``."""

    @override
    def compute(self) -> Tensor:
        return learning_accuracy(self.R)


class BackwardTransfer(ContinualMetric):
    """Effect of later tasks on earlier ones, negative for forgetting: ``backward_transfer(R)``."""

    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return backward_transfer(self.R)


class ForwardTransfer(ContinualMetric):
    """Effect of earlier tasks on those not yet trained: ``forward_transfer(R, start)``.

    It needs ``update(accuracy, task=-1)`` before any training, and accuracies on future tasks.
    """

    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return forward_transfer(self.R, self.start)


class Forgetting(ContinualMetric):
    """Drop of earlier tasks below their best accuracy: ``forgetting(R)``."""

    higher_is_better = False
    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return forgetting(self.R)


class MinAccuracy(ContinualMetric):
    """Mean over earlier tasks of the lowest accuracy since each ended: ``min_accuracy(R, lowest)``.

    Update it at every training step, or as often as affordable: drops between two updates are missed.
    """

    @override
    def compute(self) -> Tensor:
        return min_accuracy(self.R, self.lowest)


class WorstCaseAccuracy(ContinualMetric):
    """Current accuracy on the last task and lowest accuracy on earlier ones: ``worst_case_accuracy(R, lowest)``."""

    @override
    def compute(self) -> Tensor:
        return worst_case_accuracy(self.R, self.lowest)
