"""A pool of daemon threads, which unlike an executor works at interpreter exit and after a fork."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")
Work = tuple[Future[Any], Callable[[], Any]]
log = logging.getLogger("safi_agent")
IDLE = 5.0  # seconds without work after which a thread ends
STUCK_PER_THREAD = 4  # abandoned calls that may still run, for each thread of a pool
_own = threading.local()


def mark_audit_thread() -> None:
    """Mark the current thread as one that audits."""
    _own.yes = True


def is_audit_thread() -> bool:
    """Whether the current thread audits, so that it must not wait for audits."""
    return getattr(_own, "yes", False)


class ThreadPool:
    """At most ``size`` threads, started on demand, and replacements for threads that hang."""

    def __init__(self, size: int, name: str) -> None:
        self.size, self.name = size, name
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._alive = self._waiting = 0
        self._stuck: set[Future[Any]] = set()  # abandoned by their callers, and still running
        self._work: deque[Work] = deque()

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Run a function on a thread of the pool, in the caller's context.

        Raises:
            RuntimeError: no thread can be started, and there is none.
        """
        if self._pid != os.getpid():  # a fork copies the pool without its threads
            self._reset()
        future: Future[T] = Future()
        context = copy_context()
        with self._changed:
            self._work.append((future, lambda: context.run(work)))
            if self._waiting >= len(self._work):
                self._changed.notify()
            elif self._alive < self._limit() and not self._start():
                self._work.pop()
                raise RuntimeError(f"No thread {self.name!r} can be started.")
        return future

    def gather(self, works: Iterable[Callable[[], T]]) -> list[T]:
        """Run all functions and return their results in order; raises the first error.

        If no thread can be started, the function runs on the caller's thread.
        """
        done: list[Callable[[], T]] = []
        for work in works:
            try:
                done.append(self.submit(work).result)
            except RuntimeError:
                done.append(work)
        return [result() for result in done]

    def free_slots(self) -> int:
        """The number of functions that would begin immediately."""
        with self._changed:
            return max(0, self._waiting + self._limit() - self._alive - len(self._work))

    def abandon(self, future: "Future[Any]") -> None:
        """Abandon a future: while it still runs, another thread may be started in its place.

        At most ``STUCK_PER_THREAD * size`` are replaced, so that calls which never end do not take all memory.
        """
        with self._changed:
            if not future.cancel() and not future.done():
                self._stuck.add(future)
                if self._work and self._alive < self._limit():
                    self._start()

    @property
    def stuck(self) -> int:
        """The number of abandoned functions that still run."""
        with self._changed:
            return len(self._stuck)

    def _limit(self) -> int:
        return self.size + min(len(self._stuck), STUCK_PER_THREAD * self.size)

    def _start(self) -> bool:
        """Start a thread; whether there is now a thread that will take the work."""
        thread = threading.Thread(target=self._run_thread, name=self.name, daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            log.error("No thread %r could be started (%s); %d are running.", self.name, error, self._alive)
            return self._alive > len(self._stuck)
        self._alive += 1
        return True

    def _run_thread(self) -> None:
        mark_audit_thread()
        changed, counted = self._changed, True
        try:
            while True:
                with changed:
                    work = self._next()
                    if work is None:
                        self._alive -= 1
                        counted = False
                        break
                _run_work(*work)
                with changed:
                    self._stuck.discard(work[0])
                del work
        finally:
            if counted:  # an exception was injected into this thread
                with changed:
                    self._alive -= 1

    def _next(self) -> Work | None:
        """The next work item; None after ``IDLE`` seconds without one, or if this thread was replaced."""
        while not self._work:
            if self._alive > self._limit():
                return None
            self._waiting += 1
            try:
                notified = self._changed.wait(IDLE)
            finally:
                self._waiting -= 1
            if not notified and not self._work:
                return None
        return self._work.popleft() if self._alive <= self._limit() else None


def _run_work(future: "Future[Any]", run: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = run()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
