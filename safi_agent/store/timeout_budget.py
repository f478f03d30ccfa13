"""How long may be waited for a store: one turn, or one piece of background work, has one allowance for all it asks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BUSY = 30.0  # seconds
_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


class Patience:
    """Seconds that may still be waited; what one transaction has waited is missing to the next."""

    def __init__(self, seconds: float = BUSY) -> None:
        self.left = seconds
        self.ended = False  # a task that outlives its turn still has the turn's context

    def waiting(self) -> "Waiting":
        """Begin to wait."""
        return Waiting(self)


class Waiting:
    """One wait; ``over`` takes the time that it took from the allowance."""

    def __init__(self, patience: Patience) -> None:
        self._patience, self._began = patience, time.monotonic()
        self._pauses = iter(_PAUSES)

    @property
    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._patience.left - (time.monotonic() - self._began))

    def pause(self) -> bool:
        """Sleep for a moment, longer each time; whether there is time left."""
        if (left := self.left) <= 0:
            return False
        time.sleep(min(next(self._pauses, _PAUSES[-1]), left))
        return True

    def over(self) -> None:
        """The wait has ended, with or without success."""
        self._patience.left = self.left
        self._began = time.monotonic()


_current: ContextVar[Patience | None] = ContextVar("safi_patience", default=None)


@contextmanager
def one_patience(seconds: float = BUSY) -> Iterator[Patience]:
    """Let all that is asked of stores inside share one allowance; one that is set already stays."""
    if (outer := _now()) is not None:
        yield outer
        return
    token = _current.set(made := Patience(seconds))
    try:
        yield made
    finally:
        made.ended = True
        _current.reset(token)


def patience() -> Patience:
    """The allowance of the turn that is under way; without one, a new one."""
    return _now() or Patience()


def _now() -> Patience | None:
    found = _current.get()
    return None if found is None or found.ended else found
