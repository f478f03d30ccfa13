"""A proposal: an older copy of the window stays as it was, and the present is compared with it."""

from torch import Tensor

from sal_lightning.layers import homogeneous
from sal_lightning.rules.subspace import BETA, FLOOR, MAX_RANK
from sal_lightning.window import Window

AGE = 200  # batches that the older copy has seen,
USUAL = 200  # and that then say how far batches usually are from it
SLOW = 0.98  # how far they are now is the mean of about fifty
JUMP = 0.1  # in log distance: so much farther than usual is a change


class Pair:
    """Says how much farther than usual the last batches are from the older copy; starts again when that is a change.

    What the running window takes for its own, because it came little by little, is far from what it was before.
    """

    def __init__(self, inputs: int) -> None:
        self.d = inputs + 1
        self.events: list[int] = []  # batches seen by then
        self.step = 0
        self.begin()

    def begin(self) -> None:
        """A new older copy."""
        self.window, self.age = Window(self.d, MAX_RANK, BETA), 0
        self.usual = self.now = self.weight = 0.0

    def observe(self, x: Tensor) -> float:
        """Look at a batch (n, d); 0 before anything is usual."""
        rows = homogeneous(x)[None]
        self.age, self.step = self.age + 1, self.step + 1
        if self.age <= AGE:
            self.window.update(rows)
            return 0.0
        if self.age == AGE + 1:
            self.window.look(FLOOR)
        distance = float(self.window.distance(rows, FLOOR).mean())
        self.now, self.weight = SLOW * self.now + (1 - SLOW) * distance, SLOW * self.weight + (1 - SLOW)
        if self.age <= AGE + USUAL:
            self.usual += distance / USUAL
            return 0.0
        drift = self.now / self.weight - self.usual
        if drift > JUMP:
            self.events.append(self.step)
            self.begin()
        return drift
