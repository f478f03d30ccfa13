"""A pool of daemon threads. Unlike an executor's they take work while the interpreter exits, and after a fork."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """At most ``size`` threads, started when there is work for them."""

    def __init__(self, size: int, name: str) -> None:
        self.size, self.name = size, name
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._started = 0
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Run it on some thread, in the caller's context."""
        if self._pid != os.getpid():  # a fork copies the pool, not its threads
            self._fresh()
        future: Future[T] = Future()
        context = copy_context()
        self._work.put((future, lambda: context.run(work)))
        with self._lock:
            if not self._idle.acquire(blocking=False) and self._started < self.size:
                self._start()
        return future

    def gather(self, works: Iterable[Callable[[], T]]) -> list[T]:
        """Results in order, once all are there; the first error if one raised."""
        futures = [self.submit(work) for work in works]
        return [future.result() for future in futures]

    def replace_stuck(self) -> None:
        """Allow one more thread in place of one that may never come back."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        self._started += 1
        threading.Thread(target=self._serve, args=(self._work,), name=self.name, daemon=True).start()

    def _serve(self, work: "SimpleQueue[tuple[Future[Any], Callable[[], Any]]]") -> None:
        while True:
            future, run = work.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run())
                except BaseException as error:
                    future.set_exception(error)
            del future, run
            self._idle.release()
