"""Room for turns: a bound on audits that are open, and what is done with a turn where it is reached."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Literal

from safi_agent.errors import BacklogError
from safi_agent.store import Store
from safi_agent.store.backlog import LOOK, Slot
from safi_agent.store.timeout_budget import Waiting, patience

log = logging.getLogger("safi_agent")
WhenFull = Literal["wait", "refuse", "warn"]


@dataclass(eq=False)
class Room:
    """Lets turns of a chain in before their Intellect is asked: ``with room.place(): …``, ``async with`` likewise."""

    store: Store
    value_set: str
    most: int | None
    when_full: WhenFull
    _said: bool = field(default=False, init=False)

    def place(self) -> "_Turn":
        """Of one turn.

        Raises:
            BacklogError: on entering, where there is no room and none came in time.
        """
        return _Turn(self)

    def enter(self) -> Slot | None:
        """Wait for room, as the settings say."""
        if self.most is None:
            return None
        waiting = patience().waiting()
        try:
            while True:
                if self.store.pending.is_stale(self.value_set, self.most):
                    self.store.pending.refresh(self.value_set)
                if (place := self._let_in(waiting)) is not None:
                    return place
                waiting.pause()
        finally:
            waiting.over()

    async def aenter(self) -> Slot | None:
        """The same without blocking."""
        if self.most is None:
            return None
        waiting = patience().waiting()
        try:
            while True:
                if self.store.pending.is_stale(self.value_set, self.most):
                    await asyncio.to_thread(self.store.pending.refresh, self.value_set)
                if (place := self._let_in(waiting)) is not None:
                    return place
                await asyncio.sleep(min(LOOK, waiting.left))
        finally:
            waiting.over()

    def _let_in(self, waiting: Waiting) -> Slot | None:
        place = self.store.pending.acquire(self.value_set, self.most)
        if place is not None:
            self._said &= 2 * self.store.pending.estimate(self.value_set) > (self.most or 0)
            return place
        self._say()
        if self.when_full == "warn":
            return self.store.pending.acquire(self.value_set, None)
        if self.when_full == "refuse" or not waiting.left:
            raise BacklogError(self.store.pending.estimate(self.value_set), self.most or 0)
        return None

    def _say(self) -> None:
        """Once, until half of it is done."""
        if not self._said:
            self._said = True
            what = {"wait": "new turns wait", "refuse": "new turns are refused", "warn": "turns go on all the same"}
            log.warning(
                "%d audits of %r are open, and max_pending is %d: %s. Audits are slower than answers.",
                self.store.pending.estimate(self.value_set),
                self.value_set,
                self.most,
                what[self.when_full],
            )


class _Turn:
    """One turn's place, given back at the end."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._place: Slot | None = None

    def __enter__(self) -> None:
        self._place = self._room.enter()

    async def __aenter__(self) -> None:
        self._place = await self._room.aenter()

    def __exit__(self, *_: object) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._room.store.pending.release(self._room.value_set, place)

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()
