"""Novelty: does a batch still fit what came before? Suspected at once, believed after three batches in a row."""

import math

from sal_lightning.rules.base import State

WARM = 20  # surprises to know before one can be called unusual
BETA = 0.98  # the usual is that of about fifty batches
SIGMAS = 5.0  # unusual: so many standard deviations above the mean,
RATIO = math.log(1.2)  # and at least a fifth more distant than the mean
CONFIRM = 3  # unusual batches in a row that make a change


class Novelty:
    """Running mean and deviation of the surprise of familiar batches, and how many unusual ones came last."""

    def __init__(self) -> None:
        self.suspicious = 0  # unusual batches in a row
        self.clear()

    def clear(self) -> None:
        """Forget what was usual: a new window begins."""
        self.count, self.weight, self.mean, self.square = 0, 0.0, 0.0, 0.0

    def excess(self, surprise: float) -> float:
        """How much more surprising than usual (in log distance); 0 before anything is usual."""
        return surprise - self.mean / self.weight if self.count >= WARM else 0.0

    def unusual(self, surprise: float) -> bool:
        """Whether this batch stands out from the familiar ones."""
        if self.count < WARM:
            return False
        usual = self.mean / self.weight
        deviation = math.sqrt(max(self.square / self.weight - usual**2, 0.0))
        return surprise - usual > max(RATIO, SIGMAS * deviation)

    def learn(self, surprise: float) -> None:
        """This batch was familiar: it is part of what is usual."""
        self.count += 1
        self.weight = BETA * self.weight + (1 - BETA)
        self.mean = BETA * self.mean + (1 - BETA) * surprise
        self.square = BETA * self.square + (1 - BETA) * surprise**2

    def state_dict(self) -> State:
        """Plain numbers."""
        return {
            "suspicious": self.suspicious,
            "count": self.count,
            "weight": self.weight,
            "mean": self.mean,
            "square": self.square,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        self.suspicious, self.count = state["suspicious"], state["count"]
        self.weight, self.mean, self.square = state["weight"], state["mean"], state["square"]
