"""What ``drain`` and ``close`` give: a count, and what is not done."""

from collections.abc import Iterable
from typing import Self


class Drained(int):
    """How many audits were finished since the last call, with what is left.

    Attributes:
        left: turns of this store and value set that are not done, those of other processes among them.
        blocked: why they are not done, a sentence for each cause; empty where ``left`` is 0.
    """

    left: int
    blocked: tuple[str, ...]

    def __new__(cls, finished: int, left: int = 0, blocked: Iterable[str] = ()) -> Self:
        """A count with its two attributes."""
        made = super().__new__(cls, finished)
        made.left, made.blocked = left, tuple(blocked)
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[int, int, tuple[str, ...]]]:
        return type(self), (int(self), self.left, self.blocked)
