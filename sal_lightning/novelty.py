"""Novelty: do the batches still fit what came before? Evidence that they do not adds up."""

import math

from sal_lightning.rules.base import State

WARM = 20  # surprises to know before one can be called unusual
BETA = 0.98  # the usual is that of about fifty batches
SPREAD = 0.02  # a standard deviation (of log distance) is not taken for less
CLIP, EXPECTED = 5.0, 2.0  # a batch adds its standard score, at most CLIP, less EXPECTED
SUSPECT = 3.0  # this much is worth a provisional hold: one batch five deviations off, or two that are less clear,
CONFIRM = 9.0  # and this much is a change: three clear batches in a row, or more that are less clear
PATIENCE = 20  # batches after which a suspicion that has not gone away is believed too


class Novelty:
    """Running mean and deviation of the surprise of familiar batches, and the evidence of a change.

    Page's cumulative sum test (1954): ``S ← max(0, S + min(z, 5) − 2)`` of the standard scores ``z``. While a change is
    suspected nothing is learned, so a suspicion that stays is believed after a while.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was usual: a new window begins."""
        self.count, self.weight, self.mean, self.square = 0, 0.0, 0.0, 0.0
        self.evidence, self.suspected = 0.0, 0

    def excess(self, surprise: float) -> float:
        """How much more surprising than usual (in log distance); 0 before anything is usual."""
        return surprise - self.mean / self.weight if self.count >= WARM else 0.0

    def weigh(self, surprise: float) -> float:
        """The evidence that the batches have changed, this one included."""
        if self.count >= WARM:
            usual = self.mean / self.weight
            deviation = math.sqrt(max(self.square / self.weight - usual**2, SPREAD**2))
            z = (surprise - usual) / deviation
            self.evidence = max(0.0, self.evidence + min(z, CLIP) - EXPECTED)
            self.suspected = self.suspected + 1 if self.evidence >= SUSPECT else 0
            if self.suspected >= PATIENCE:
                self.evidence = max(self.evidence, CONFIRM)
        return self.evidence

    def learn(self, surprise: float) -> None:
        """This batch was familiar: it is part of what is usual."""
        self.count += 1
        self.weight = BETA * self.weight + (1 - BETA)
        self.mean = BETA * self.mean + (1 - BETA) * surprise
        self.square = BETA * self.square + (1 - BETA) * surprise**2

    def state_dict(self) -> State:
        """Plain numbers."""
        return {
            "evidence": self.evidence,
            "suspected": self.suspected,
            "count": self.count,
            "weight": self.weight,
            "mean": self.mean,
            "square": self.square,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        # Version 1 counted unusual batches.
        self.evidence = state["evidence"] if "evidence" in state else SUSPECT * state["suspicious"]
        self.suspected = state.get("suspected", 0)
        self.count, self.weight = state["count"], state["weight"]
        self.mean, self.square = state["mean"], state["square"]
