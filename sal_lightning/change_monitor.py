"""Tests whether a batch fits the data of the window, and holds provisionally while a change is suspected."""

import math
from collections.abc import Mapping

from sal_lightning.change_detection import CONFIRM, SUSPECT, ChangeDetector
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
        self.other = False  # whether the last batch is of other data, as is suspected or confirmed
        self.begins = False  # whether it is the first such batch

    @property
    def suspects(self) -> bool:
        """Whether a change is suspected and a provisional hold is in force."""
        return self.provisional.before is not None

    def begin_fit(self) -> None:
        """Start a new fit, whose first batches may be other data."""
        if self.consolidate_on == "novelty" and self.detector.begin_fit():
            self.provisional.consolidate()

    def fits(self, signals: Mapping[str, float], inputs: StepInputs) -> bool:
        """Whether the batch fits the window; the first one that does not starts the provisional hold before its update.

        A batch with overflows, or of padding only, does not fit, but is no evidence of a change.
        """
        self.change, self.other, self.begins = "", False, False
        if not all(map(math.isfinite, signals.values())):
            return False
        if self.consolidate_on == "novelty":
            evidence, signal = self.detector.detect(signals)
            self.jumped = self.jumped or self.detector.loss.long
            if evidence >= SUSPECT:
                self.other, self.begins = True, not self.suspects
                self.provisional.consolidate()
                if evidence >= CONFIRM:
                    self.provisional.confirm()
                    self.change = signal
                return False
            self.provisional.roll_back()
        if due := self.detector.update(signals):
            inputs.refresh(due)
        return True

    def clear(self) -> None:
        """Start a new window."""
        self.detector.clear()
        self.jumped = False
