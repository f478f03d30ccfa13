"""Measures of continual learning, as functions of the accuracy matrix and as torchmetrics."""

from sal_lightning.metrics.continual.accuracies import (
    AverageAccuracy,
    BackwardTransfer,
    Forgetting,
    ForwardTransfer,
    LearningAccuracy,
    MinAccuracy,
    WorstAccuracy,
    WorstCaseAccuracy,
)
from sal_lightning.metrics.continual.measures import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
    min_accuracy,
    reached,
    worst_accuracy,
    worst_case_accuracy,
)
from sal_lightning.metrics.continual.stream import ContinualMetric

__all__ = [
    "AverageAccuracy",
    "BackwardTransfer",
    "ContinualMetric",
    "Forgetting",
    "ForwardTransfer",
    "LearningAccuracy",
    "MinAccuracy",
    "WorstAccuracy",
    "WorstCaseAccuracy",
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "learning_accuracy",
    "min_accuracy",
    "reached",
    "worst_accuracy",
    "worst_case_accuracy",
]
