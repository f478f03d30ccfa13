"""A timeout budget: all waits of one turn, or of one background task, for a store share one timeout."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

STORE_TIMEOUT = 30.0  # seconds
_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


class TimeoutBudget:
    """The seconds left to wait; each wait reduces them for the next transaction."""

    def __init__(self, seconds: float = STORE_TIMEOUT) -> None:
        self.left = seconds
        self.ended = False  # set because a task that outlives its turn keeps the turn's context

    def wait(self) -> "Wait":
        """Begin a wait."""
        return Wait(self)


class Wait:
    """One wait; ``end`` subtracts its duration from the budget."""

    def __init__(self, budget: TimeoutBudget) -> None:
        self._budget, self._began = budget, time.monotonic()
        self._pauses = iter(_PAUSES)

    @property
    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._budget.left - (time.monotonic() - self._began))

    def pause(self) -> bool:
        """Sleep for a moment, longer each time; False if no time is left."""
        if (left := self.left) <= 0:
            return False
        time.sleep(min(next(self._pauses, _PAUSES[-1]), left))
        return True

    def end(self) -> None:
        """End the wait, with or without success."""
        self._budget.left = self.left
        self._began = time.monotonic()


_current: ContextVar[TimeoutBudget | None] = ContextVar("safi_patience", default=None)


@contextmanager
def shared_timeout_budget(seconds: float = STORE_TIMEOUT) -> Iterator[TimeoutBudget]:
    """All waits within this context share one budget; an outer budget stays in effect."""
    if (outer := _active()) is not None:
        yield outer
        return
    token = _current.set(budget := TimeoutBudget(seconds))
    try:
        yield budget
    finally:
        budget.ended = True
        _current.reset(token)


def current_timeout_budget() -> TimeoutBudget:
    """The budget of the current turn; a new one outside of a turn."""
    return _active() or TimeoutBudget()


def _active() -> TimeoutBudget | None:
    budget = _current.get()
    return None if budget is None or budget.ended else budget
