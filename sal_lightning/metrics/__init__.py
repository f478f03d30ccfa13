"""Torchmetrics of what SAL sees and does."""

from sal_lightning.metrics.norms import NormShare
from sal_lightning.metrics.spectrum import BandPercent

__all__ = ["BandPercent", "NormShare"]
