"""Novelty: do the batches still fit what came before? Evidence that they do not adds up."""

import math
from typing import NamedTuple

from sal_lightning.rules.base import State

WARM = 20  # surprises to know before one can be called unusual
KNOWN = 100  # surprises after which it is settled what is usual: were it to follow on, it would follow a slow change
DOUBT = 2.0  # times as unusual has to be what comes right after a look, until it is known what is usual since
LOOK = 128  # familiar batches after which they are measured by all that came before, then after 256, 512, …
SPREAD = 0.02  # a standard deviation (of log distance) is not taken for less
CLIP, EXPECTED = 5.0, 2.0  # a batch adds its standard score, at most CLIP, less EXPECTED
SUSPECT = 3.0  # this much is worth a provisional hold: one batch five deviations off, or two that are less clear,
CONFIRM = 9.0  # and this much is a change: three clear batches in a row, or more that are less clear
PATIENCE = 20  # batches after which a suspicion that has not gone away is believed too


class Usual(NamedTuple):
    """Mean and deviation of the surprise of familiar batches."""

    n: int = 0
    total: float = 0.0
    square: float = 0.0

    def learn(self, surprise: float) -> "Usual":
        """One more of them."""
        return Usual(self.n + 1, self.total + surprise, self.square + surprise**2)

    @property
    def mean(self) -> float:
        """The mean."""
        return self.total / self.n

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(max(self.square / self.n - self.mean**2, SPREAD**2))


class Novelty:
    """How surprising familiar batches usually are, and the evidence of a change.

    Page's cumulative sum test (1954): ``S ← max(0, S + min(z, 5) − 2)`` of the standard scores ``z``. While a change is
    suspected nothing is learned, so a suspicion that stays is believed after a while.

    What surprise is measured by is taken anew ever more rarely: if it followed the data, a change that takes its time
    would never surprise. What is usual is then learned anew, and the old usual judges until that is known.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was usual: a new window begins."""
        self.count = 0  # familiar batches
        self.usual = self.fresh = Usual()  # what judges, and what was learned since the last look
        self.evidence, self.suspected = 0.0, 0

    def excess(self, surprise: float) -> float:
        """How much more surprising than usual (in log distance); 0 before anything is usual."""
        return surprise - self.usual.mean if self.usual.n >= WARM else 0.0

    def weigh(self, surprise: float) -> float:
        """The evidence that the batches have changed, this one included."""
        if self.usual.n >= WARM:
            doubt = 1.0 if self.fresh.n >= WARM else DOUBT
            z = (surprise - self.usual.mean) / (self.usual.deviation * doubt)
            self.evidence = max(0.0, self.evidence + min(z, CLIP) - EXPECTED)
            self.suspected = self.suspected + 1 if self.evidence >= SUSPECT else 0
            if self.suspected >= PATIENCE:
                self.evidence = max(self.evidence, CONFIRM)
        return self.evidence

    def learn(self, surprise: float) -> bool:
        """This batch was familiar: it is part of what is usual. Whether it is time for a fresh look at all of them."""
        self.count += 1
        if self.fresh.n < KNOWN:
            self.fresh = self.fresh.learn(surprise)
        if self.fresh.n >= WARM or self.usual.n < WARM:
            self.usual = self.fresh
        due = self.count >= LOOK and self.count & (self.count - 1) == 0
        if due:
            self.fresh = Usual()
        return due

    def state_dict(self) -> State:
        """Plain numbers."""
        return {
            "evidence": self.evidence,
            "suspected": self.suspected,
            "count": self.count,
            "usual": list(self.usual),
            "fresh": list(self.fresh),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        self.evidence, self.suspected, self.count = state["evidence"], state["suspected"], state["count"]
        self.usual, self.fresh = Usual(*state["usual"]), Usual(*state["fresh"])
