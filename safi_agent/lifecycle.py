"""drain() and close(), synchronous and asynchronous, and the result they return."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Self

from safi_agent.unicode_text import many


class DrainResult(int):
    """The number of audits finished since the last call, and what is left.

    Attributes:
        left: number of unfinished turns of this store and value set, including those of other processes.
        blocked: why they are unfinished, one sentence for each cause; empty if ``left`` is 0.
    """

    left: int
    blocked: tuple[str, ...]

    def __new__(cls, finished: int, left: int = 0, blocked: Iterable[str] = ()) -> Self:
        """A count with its two attributes."""
        result = super().__new__(cls, finished)
        result.left, result.blocked = left, tuple(blocked)
        return result

    def __reduce__(self) -> tuple[type[Self], tuple[int, int, tuple[str, ...]]]:
        return type(self), (int(self), self.left, self.blocked)


log = logging.getLogger("safi_agent")


class Lifecycle:
    """drain() and close(), sync and async; ``with`` and ``async with`` close at the end of the block."""

    def drain(self, timeout: float | None = 30) -> DrainResult:
        """Wait until the audits of this process are done.

        Args:
            timeout: maximum number of seconds to wait, None for no limit. Unfinished turns stay in the store.

        Returns:
            The number of audits finished since the last call, with the attributes ``left``, the number of unfinished
            turns, and ``blocked``, one sentence for each cause.

        Raises:
            RuntimeError: it was called by a hook or a model during an audit.
        """
        raise NotImplementedError

    async def adrain(self, timeout: float | None = 30) -> DrainResult:
        """Asynchronous version."""
        return await asyncio.to_thread(self.drain, timeout)

    def close(self, timeout: float | None = 30) -> DrainResult:
        """Accept no more turns, then drain."""
        raise NotImplementedError

    async def aclose(self, timeout: float | None = 30) -> DrainResult:
        """Asynchronous version."""
        return await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _warn_unfinished(self.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        _warn_unfinished(await self.aclose())


def _warn_unfinished(closed: DrainResult) -> None:
    """Log what is left at the end of a ``with`` block, which has no return value."""
    if closed.left:
        log.warning("Closed with %s unfinished. %s", many(closed.left, "turn"), " ".join(closed.blocked))
