"""The one thread of a process on which audits are looked after, with a loop of its own.

It has nothing to do with the caller's loop, so it serves callers that have none, close theirs, or run another kind.
Models are called in threads, by their sync methods: async clients belong to the loop that opened their connections.
"""

import asyncio
import atexit
import contextvars
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from safi_agent.store import LEASE
from safi_agent.threads import Threads

log = logging.getLogger("safi_agent")
AT_ONCE = 32
GRACE = 0.02
DOZE = 2.0
EXIT_TIMEOUT = 15.0


class Served(Protocol):
    """Who has work here."""

    def beat(self) -> None:
        """Renew leases, take over what others left."""

    def leave(self, timeout: float) -> None:
        """Wait for the work to be done; the interpreter exits."""


class Dispatcher:
    """A loop in a daemon thread; use ``dispatcher()``, there is one in a process."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.slots = asyncio.Semaphore(AT_ONCE)
        self.threads = Threads(AT_ONCE, "safi-audit")
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbox: deque[Callable[[], Coroutine[Any, Any, None]]] = deque()
        self._awake = False
        self._last = 0.0
        self.thread = threading.Thread(target=self._run, name="safi-dispatcher", daemon=True)
        self.thread.start()

    def submit(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run it on the loop; in an empty context, so that nothing of the caller's tracing or callbacks comes along.

        It begins a moment later: threads take turns at the interpreter, and the answer that is leaving goes first.
        While there is something to do the loop looks by itself, because waking it costs more than all else here.
        """
        self._inbox.append(work)
        if not self._awake:
            self._awake = True
            self.loop.call_soon_threadsafe(self.loop.call_later, GRACE, self._look, context=contextvars.Context())

    def _look(self) -> None:
        now = self.loop.time()
        if not self._inbox and now - self._last > DOZE:
            self._awake = False  # before the inbox is looked at once more: who sees it true has put something in
            if not self._inbox:
                return
            self._awake = True
        while self._inbox:
            self._last = now
            task = self.loop.create_task(self._inbox.popleft()())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.loop.call_later(GRACE, self._look)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.submit(self._beat)
        self.loop.run_forever()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            for one in served():
                try:
                    one.beat()
                except Exception as error:
                    log.error("A heartbeat failed.", exc_info=error)


_served: "weakref.WeakSet[Served]" = weakref.WeakSet()
_lock = threading.Lock()
_one: Dispatcher | None = None


def dispatcher() -> Dispatcher:
    """This process's dispatcher, started when first asked for."""
    global _one
    with _lock:
        if _one is None:
            _one = Dispatcher()
        return _one


def on_dispatcher() -> bool:
    """Whether this is the dispatcher's own thread."""
    return _one is not None and threading.current_thread() is _one.thread


def serve(one: Served) -> None:
    """Beat for it, and wait for it when the interpreter exits."""
    with _lock:
        _served.add(one)


def served() -> list[Served]:
    """Who has work here now."""
    with _lock:
        return list(_served)


@atexit.register
def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_TIMEOUT
    for one in served():
        one.leave(max(0.0, deadline - time.monotonic()))
    if _one is not None:
        _one.loop.call_soon_threadsafe(_one.loop.stop)
        _one.thread.join(1)


def _after_fork() -> None:
    global _one, _lock
    _one, _lock = None, threading.Lock()  # the parent's thread is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
