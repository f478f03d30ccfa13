"""Tests whether a batch fits the data of the window, and holds provisionally while a change is suspected."""

import math
from collections.abc import Mapping

from sal_lightning.change_detection import CONFIRM, SUSPECT, Batch, ChangeDetector
from sal_lightning.coverage import Coverage, ProvisionalHold
from sal_lightning.settings import Trigger
from sal_lightning.step_inputs import StepInputs


class ChangeMonitor:
    """Change detection, with a provisional hold while a change is suspected.

    Args:
        coverage: the rules that consolidate on a suspicion.
        consolidate_on: where it is not ``"novelty"``, every batch counts as familiar.
    """

    def __init__(self, coverage: Coverage, consolidate_on: Trigger) -> None:
        self.consolidate_on = consolidate_on
        self.detector, self.provisional = ChangeDetector(), ProvisionalHold(coverage)
        self.jumped = False  # whether the loss or a deeper layer jumped in this fit, and no change was detected
        self.change = ""  # the signal in which the last batch confirmed a change; empty if it did not

    @property
    def suspects(self) -> bool:
        """Whether a change is suspected and a provisional hold is in force."""
        return self.provisional.before is not None

    def begin_fit(self) -> None:
        """Start a new fit, whose first batches may be other data."""
        if self.consolidate_on == "novelty" and self.detector.begin_fit():
            self.provisional.consolidate()

    def compare(self, signals: Mapping[str, float], inputs: StepInputs) -> Batch:
        """Compare the batch with the window; the first one that differs starts the provisional hold before its update.

        A batch with overflows, or of padding only, is no evidence of a change.
        """
        self.change = ""
        if not all(map(math.isfinite, signals.values())):
            return Batch.UNUSABLE
        if self.consolidate_on == "novelty":
            evidence, signal = self.detector.detect(signals)
            self.jumped = self.jumped or self.detector.loss.long
            if evidence >= SUSPECT:
                kind = Batch.OTHER if self.suspects else Batch.FIRST_OTHER
                self.provisional.consolidate()
                if evidence >= CONFIRM:
                    self.provisional.confirm()
                    self.change = signal
                return kind
            self.provisional.roll_back()
        if due := self.detector.update(signals):
            inputs.refresh(due)
        return Batch.FAMILIAR

    def clear(self) -> None:
        """Start a new window."""
        self.detector.clear()
        self.jumped = False
