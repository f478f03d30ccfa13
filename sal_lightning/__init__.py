"""Self-Alignment Learning: continual training that measures which weights have settled and protects them."""

from sal_lightning.callback import SALCallback
from sal_lightning.communication import CommunicationLayer
from sal_lightning.drift_monitor import DriftMonitor
from sal_lightning.emergence.cascade import PulseCascade
from sal_lightning.emergence.field import EmergenceField, EmergenceState
from sal_lightning.emergence.population import Lineage, Pulse
from sal_lightning.emergence.selection import emergence_select
from sal_lightning.metrics.continual import (
    AverageAccuracy,
    BackwardTransfer,
    Forgetting,
    ForwardTransfer,
    LearningAccuracy,
    MinAccuracy,
    WorstAccuracy,
    WorstCaseAccuracy,
)
from sal_lightning.stability import StabilityAnalyzer, StabilitySpectrum

__version__ = "0.1.0"
__all__ = [
    "AverageAccuracy",
    "BackwardTransfer",
    "CommunicationLayer",
    "DriftMonitor",
    "EmergenceField",
    "EmergenceState",
    "Forgetting",
    "ForwardTransfer",
    "LearningAccuracy",
    "Lineage",
    "MinAccuracy",
    "Pulse",
    "PulseCascade",
    "SALCallback",
    "StabilityAnalyzer",
    "StabilitySpectrum",
    "WorstAccuracy",
    "WorstCaseAccuracy",
    "emergence_select",
]
