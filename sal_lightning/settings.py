"""Settings shared by ``SALCallback`` and ``CommunicationLayer``, validated at construction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

Protection = Literal["subspace", "element", "tensor"]
Trigger = Literal["novelty", "fit"] | int | None
Statistics = Literal["keep", "update"]


@dataclass(frozen=True)
class Settings:
    """Validated arguments of ``SALCallback`` and ``CommunicationLayer``, which document them.

    Raises:
        ValueError: an argument is outside its range.
    """

    protection: Protection = "subspace"
    consolidate_on: Trigger = "novelty"
    strength: float = 0.25
    recall: float = 0.5
    share: float = 1.0
    running_statistics: Statistics = "keep"
    pull: float = 5.0
    absent_prior: float = 0.0002

    def __post_init__(self) -> None:
        allowed = get_args(Protection)
        if self.protection not in allowed:
            raise ValueError(f"Expected protection to be one of {allowed}, got {self.protection!r}.")
        if self.running_statistics not in get_args(Statistics):
            raise ValueError(
                f"Expected running_statistics to be one of {get_args(Statistics)}, got {self.running_statistics!r}."
            )
        on = self.consolidate_on
        whole = isinstance(on, int) and not isinstance(on, bool) and on > 0
        if not (on is None or on in ("novelty", "fit") or whole):
            raise ValueError(
                f"Expected consolidate_on to be 'novelty', 'fit', None or a whole number of steps > 0, got {on!r}."
            )
        _check("strength", self.strength, "a number > 0", lambda v: 0 < v < float("inf"))
        _check("pull", self.pull, "a number >= 0", lambda v: 0 <= v < float("inf"))
        _check("absent_prior", self.absent_prior, "a number in (0, 1]", lambda v: 0 < v <= 1)
        _check("recall", self.recall, "a number >= 0", lambda v: 0 <= v < float("inf"))
        _check("share", self.share, "a number in (0, 1]", lambda v: 0 < v <= 1)


def _check(name: str, value: object, allowed: str, good: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not good(value):
        raise ValueError(f"Expected {name} to be {allowed}, got {value!r}.")
