"""Calls the hooks of a chain, each on a thread with its own event loop, so that a slow hook delays no other."""

import asyncio
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from safi_agent.audit.event_loop_thread import EventLoopThread
from safi_agent.hooks import Alert, Hook, call_hook, callable_name

log = logging.getLogger("safi_agent")
MAX_STUCK = 3  # hanging threads of a hook after which it is not called any more
MAX_POLL = 1.0  # maximum seconds between checks of pending calls


class HookCall(NamedTuple):
    """A hook and the alert to call it with."""

    hook: Hook
    alert: Alert


class _RunningCall:
    """A pending call; ``begun`` is the time of the monotonic clock at which the hook was called."""

    def __init__(self, call: HookCall, end: Callable[[], None]) -> None:
        self.call, self.end = call, end
        self.begun: float | None = None
        self.on: EventLoopThread | None = None


class HookDispatcher:
    """Calls the hooks of each turn in order; async calls of several turns may overlap.

    A call that has not ended after ``timeout`` seconds is abandoned. If it blocks its hook's thread, the hook gets a
    new thread, at most ``MAX_STUCK`` times; then the hook is not called until one of its threads is free again. Every
    skipped call is logged.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._lock = threading.RLock()
        self._threads: dict[int, _HookThread] = {}

    def dispatch(self, calls: Sequence[HookCall], done: Callable[[], None]) -> None:
        """Make these calls one after the other, then call ``done`` on an unspecified thread."""
        pending = deque(calls)

        def go_on() -> None:
            if pending:
                call = pending.popleft()
                self._thread_of(call.hook).add(_RunningCall(call, go_on))
            else:
                done()

        with self._lock:
            go_on()

    def _thread_of(self, hook: Hook) -> "_HookThread":
        if (thread := self._threads.get(id(hook))) is None:
            thread = self._threads[id(hook)] = _HookThread(hook, self.timeout, self._lock)
            weakref.finalize(self, thread.stop).atexit = False  # hooks are also called at interpreter exit
        return thread

    def expire(self) -> float:
        """Abandon calls past their timeout; seconds until the next check, infinity if none is needed."""
        with self._lock:
            waiting = [thread.expire() for thread in list(self._threads.values())]
        return min(MAX_POLL, self.timeout / 2) if any(waiting) else math.inf

    def blocked(self) -> list[str]:
        """One sentence for each hook with pending calls."""
        with self._lock:
            return [sentence for thread in self._threads.values() if (sentence := thread.blocked())]

    def stop(self) -> None:
        """End the threads; later calls start new ones."""
        with self._lock:
            for thread in self._threads.values():
                thread.stop()


class _HookThread:
    """The thread of one hook. All methods are called with the lock held."""

    def __init__(self, hook: Hook, timeout: float, lock: threading.RLock) -> None:
        self.hook, self.timeout, self._lock = hook, timeout, lock
        self._calls: dict[_RunningCall, None] = {}  # pending calls, oldest first
        self._thread: EventLoopThread | None = None
        self._stuck: list[EventLoopThread] = []

    def add(self, one: _RunningCall) -> None:
        self._stuck = [thread for thread in self._stuck if not thread.ended]
        if len(self._stuck) >= MAX_STUCK:
            self._leave_out(one, f"{len(self._stuck)} calls of it have not ended")
            return
        self._calls[one] = None
        self._begin(one)

    def _begin(self, one: _RunningCall) -> None:
        try:
            if self._thread is None or not self._thread.alive:
                self._thread = EventLoopThread("safi-hook")
            one.on = on = self._thread
            on.submit(lambda: self._call(one, on))
        except (RuntimeError, MemoryError, OSError) as error:  # retried by the next ``expire``
            log.error("No thread could be started for the hook %s (%s).", callable_name(self.hook), error)

    async def _call(self, one: _RunningCall, on: EventLoopThread) -> None:
        with self._lock:
            if one.on is not on or one not in self._calls:
                return  # it was moved to another thread, or abandoned
            one.begun = time.monotonic()
        rest, in_time = call_hook(*one.call), True
        if rest is not None:
            task = asyncio.create_task(rest)
            in_time = bool((await asyncio.wait([task], timeout=self.timeout))[0])
            if not in_time:
                task.cancel()
        with self._lock:
            self._end(one, in_time=in_time)

    def _end(self, one: _RunningCall, *, in_time: bool) -> None:
        if one not in self._calls:
            return
        del self._calls[one]
        if not in_time:
            log.error(
                "The hook %s did not end on turn %s within %g s.",
                callable_name(self.hook),
                one.call.alert.turn_id,
                self.timeout,
            )
        one.end()

    def _leave_out(self, one: _RunningCall, why: str) -> None:
        log.error("The hook %s is not called on turn %s: %s.", callable_name(self.hook), one.call.alert.turn_id, why)
        one.end()

    def expire(self) -> bool:
        """Abandon calls that block the thread past their timeout; whether any call is pending."""
        late = time.monotonic() - self.timeout - min(MAX_POLL, self.timeout / 2)
        over = [one for one in self._calls if one.begun is not None and one.begun < late]
        if over and self._thread is not None and any(one.on is self._thread for one in over):
            self._thread.stop()
            self._stuck.append(self._thread)
            self._thread = None
        for one in over:
            self._end(one, in_time=False)
        lost = self._thread is None or not self._thread.alive
        for one in [one for one in self._calls if one.begun is None and (lost or one.on is not self._thread)]:
            del self._calls[one]
            self.add(one)
        return bool(self._calls)

    def blocked(self) -> str | None:
        begun = [one.begun for one in self._calls if one.begun is not None]
        if not self._calls:
            return None
        since = f" for {time.monotonic() - min(begun):.0f} s" if begun else ""
        return f"{len(self._calls)} calls of the hook {callable_name(self.hook)} are running{since}."

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
