"""Jumps of the loss: the only sign of new labels on old inputs."""

from collections import deque
from statistics import mean

from sal_lightning.novelty import CONFIRM, SUSPECT
from sal_lightning.rules.base import State

NEW, FEW = 6, 3  # values in a row that have to lie above all usual ones to be believed, and to be suspicious
USUAL, KNOWN = 64, 32  # so many are usual at most, and have to be known
MARGIN = 0.05  # in log: by so much they have to lie above


class Jumps:
    """Whether the newest values, in log, all lie above all usual values by more than ``MARGIN``.

    Of values that come in random order, whatever their distribution, the 6 newest of 70 are the 6 largest once in
    ``C(70, 6)`` = 131,115,985 times: neither heavy tails nor noise raise false alarms. A slow rise, as a schedule of
    the learning rate may bring it about, is not a jump: it becomes usual on the way. Nor is a fast one, as of a
    training that diverges: a jump is more than three times what the usual values have risen from their older half to
    their newer one.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was usual."""
        self.usual = deque[float](maxlen=USUAL)
        self.above: list[float] = []  # the newest values, as far as they lie above
        self.first = False  # whether the next value is the first one of a fit

    def begin_fit(self) -> None:
        """A new fit begins: its optimizer is new, and its first steps may raise the loss whatever the data are.

        But its first value is that of weights that have not moved since. Where that is usual, begin anew.
        """
        self.above, self.first = [], True

    @property
    def long(self) -> bool:
        """Whether more values in a row lie above than chance explains, though perhaps too few to be believed."""
        return len(self.above) > FEW and not self._rises

    @property
    def _rises(self) -> bool:
        """Whether the values above go on with a rise of the usual ones."""
        usual, half = list(self.usual), len(self.usual) // 2
        older, newer = mean(usual[:half]), mean(usual[half:])
        return min(self.above) - newer <= 3 * (newer - older)

    def weigh(self, value: float) -> float:
        """The evidence of a jump, this value included: 0, or from ``SUSPECT`` to ``CONFIRM``."""
        high = len(self.usual) >= KNOWN and value > max(self.usual) + MARGIN
        if self.first and not high:
            self.usual.clear()
        self.first = False
        if not high:
            self.usual.extend(self.above)  # they were outliers
            self.above = []
            return 0.0
        self.above.append(value)
        if len(self.above) >= NEW and self._rises:
            self.usual.extend(self.above)
            self.above = []
        if len(self.above) < FEW or self._rises:
            return 0.0
        return SUSPECT + (CONFIRM - SUSPECT) * (len(self.above) - FEW) / (NEW - FEW)

    def learn(self, value: float) -> None:
        """This value is usual, unless it lies above: those that follow may show that it is not."""
        if not self.above:
            self.usual.append(value)

    def state_dict(self) -> State:
        """Plain numbers."""
        return {"usual": list(self.usual), "above": list(self.above), "first": self.first}

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        self.clear()
        self.usual.extend(state["usual"])
        self.above, self.first = list(state["above"]), state["first"]
