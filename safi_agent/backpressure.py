"""Backpressure: a bound on open audits, and what a new turn does when it is reached."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Literal

from safi_agent.errors import BacklogError
from safi_agent.store import Store
from safi_agent.store.backlog import RECOUNT_INTERVAL, Slot
from safi_agent.store.timeout_budget import Wait, current_timeout_budget

log = logging.getLogger("safi_agent")
WhenFull = Literal["wait", "refuse", "warn"]


@dataclass(eq=False)
class Backpressure:
    """Bounds the open audits of a chain: a turn begins within ``with backpressure.admit(): …`` (or ``async with``)."""

    store: Store
    value_set: str
    max_pending: int | None
    when_full: WhenFull
    _warned: bool = field(default=False, init=False)

    def admit(self) -> "_Admission":
        """The context of one turn.

        Raises:
            BacklogError: on entering, if no slot is free, or none became free in time.
        """
        return _Admission(self)

    def acquire(self) -> Slot | None:
        """Acquire a slot, and wait for it if ``when_full`` is "wait"."""
        if self.max_pending is None:
            return None
        waiting = current_timeout_budget().wait()
        try:
            while True:
                if self.store.pending.is_stale(self.value_set, self.max_pending):
                    self.store.pending.refresh(self.value_set)
                if (slot := self._try_acquire(waiting)) is not None:
                    return slot
                waiting.pause()
        finally:
            waiting.end()

    async def aacquire(self) -> Slot | None:
        """Asynchronous version."""
        if self.max_pending is None:
            return None
        waiting = current_timeout_budget().wait()
        try:
            while True:
                if self.store.pending.is_stale(self.value_set, self.max_pending):
                    await asyncio.to_thread(self.store.pending.refresh, self.value_set)
                if (slot := self._try_acquire(waiting)) is not None:
                    return slot
                await asyncio.sleep(min(RECOUNT_INTERVAL, waiting.left))
        finally:
            waiting.end()

    def _try_acquire(self, waiting: Wait) -> Slot | None:
        slot = self.store.pending.acquire(self.value_set, self.max_pending)
        if slot is not None:
            self._warned &= 2 * self.store.pending.estimate(self.value_set) > (self.max_pending or 0)
            return slot
        self._warn()
        if self.when_full == "warn":
            return self.store.pending.acquire(self.value_set, None)
        if self.when_full == "refuse" or not waiting.left:
            raise BacklogError(self.store.pending.estimate(self.value_set), self.max_pending or 0)
        return None

    def _warn(self) -> None:
        """Warn once, until half of the backlog is done."""
        if not self._warned:
            self._warned = True
            what = {
                "wait": "new turns wait",
                "refuse": "new turns are refused",
                "warn": "new turns are answered anyway",
            }
            log.warning(
                "%d audits of %r are open, and max_pending is %d: %s. "
                "Audits are slower than answers; add workers or raise max_pending.",
                self.store.pending.estimate(self.value_set),
                self.value_set,
                self.max_pending,
                what[self.when_full],
            )


class _Admission:
    """The slot of one turn, released at the end of the block."""

    def __init__(self, backpressure: Backpressure) -> None:
        self._backpressure = backpressure
        self._slot: Slot | None = None

    def __enter__(self) -> None:
        self._slot = self._backpressure.acquire()

    async def __aenter__(self) -> None:
        self._slot = await self._backpressure.aacquire()

    def __exit__(self, *_: object) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._backpressure.store.pending.release(self._backpressure.value_set, slot)

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()
