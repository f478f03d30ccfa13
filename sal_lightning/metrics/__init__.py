"""Torchmetrics for values measured by SAL, and for continual learning with any method."""

from sal_lightning.metrics.continual import (
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
from sal_lightning.metrics.emergence import Coherence, EmergenceRate, FieldMetric, Novelty, Resonance
from sal_lightning.metrics.norms import NormShare
from sal_lightning.metrics.spectrum import BandPercent

__all__ = [
    "AverageAccuracy",
    "BackwardTransfer",
    "BandPercent",
    "Coherence",
    "ContinualMetric",
    "EmergenceRate",
    "FieldMetric",
    "Forgetting",
    "ForwardTransfer",
    "LearningAccuracy",
    "MinAccuracy",
    "NormShare",
    "Novelty",
    "Resonance",
    "WorstAccuracy",
    "WorstCaseAccuracy",
]
