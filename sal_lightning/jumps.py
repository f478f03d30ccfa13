"""Jumps of the loss: the only sign of new labels on old inputs."""

from collections import deque

from sal_lightning.novelty import CONFIRM, SUSPECT
from sal_lightning.rules.base import State

NEW, FEW = 4, 2  # values in a row that have to lie above all usual ones to be believed, and to be suspicious
USUAL, KNOWN = 64, 32  # so many are usual at most, and have to be known
MARGIN = 0.3  # in log: by so much they have to lie above


class Jumps:
    """Whether the newest values, in log, lie above all of the values before by more than ``MARGIN``.

    Values of any distribution that come in random order do so once in ``C(64 + 4, 4)`` = 814,385 times at margin 0, as
    often as the 4 largest of 68 are the last ones; so neither heavy tails nor noise raise false alarms. A slow rise, as
    a schedule of the learning rate brings it about, is not a jump: most of it becomes usual on the way.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was usual."""
        self.usual = deque[float](maxlen=USUAL)
        self.above = 0  # newest values that lie above
        self.first = False  # whether the next value is the first one of a fit

    def begin_fit(self) -> None:
        """A new fit begins: its optimizer is new, and its first steps may raise the loss whatever the data are.

        But its first value is that of weights that have not moved since. Where that is usual, begin anew.
        """
        self.above, self.first = 0, True

    def weigh(self, value: float) -> float:
        """The evidence of a jump, this value included: 0, or from ``SUSPECT`` to ``CONFIRM``."""
        high = len(self.usual) >= KNOWN and value > max(self.usual) + MARGIN
        if self.first and not high:
            self.usual.clear()
        self.first = False
        self.above = self.above + 1 if high else 0
        if self.above < FEW:
            return 0.0
        return SUSPECT + (CONFIRM - SUSPECT) * (self.above - FEW) / (NEW - FEW)

    def learn(self, value: float) -> None:
        """This value is usual, unless it lies above: the next one may show that it is not."""
        if not self.above:
            self.usual.append(value)

    def state_dict(self) -> State:
        """Plain numbers."""
        return {"usual": list(self.usual), "above": self.above, "first": self.first}

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        self.clear()
        self.usual.extend(state["usual"])
        self.above, self.first = state["above"], state["first"]
