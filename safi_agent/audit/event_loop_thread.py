"""An event loop on a daemon thread, which keeps running when a task raises."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context
from typing import Any

from safi_agent.thread_pool import mark_audit_thread

log = logging.getLogger("safi_agent")
LEAVE = 15.0  # seconds for tasks to end after they were cancelled by stop()


class EventLoopThread:
    """Runs coroutines until it is stopped, in an empty context.

    Raises:
        RuntimeError: the thread cannot be started.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self._stopped = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()  # an event loop keeps no strong references to tasks
        run = (self.loop, self._stopped, self._tasks)
        self._thread = threading.Thread(target=_run, args=run, name=name, daemon=True)
        try:
            self._thread.start()
        except (RuntimeError, MemoryError):
            self.loop.close()
            raise

    def submit(self, make: Callable[[], Coroutine[Any, Any, None]]) -> "Future[None]":
        """Run a coroutine that does not raise; the future is done when it has ended."""
        ended: Future[None] = Future()

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            ended.set_result(None)

        def begin() -> None:
            task = self.loop.create_task(make())
            self._tasks.add(task)
            task.add_done_callback(end)

        self.loop.call_soon_threadsafe(begin, context=Context())
        return ended

    @property
    def alive(self) -> bool:
        """Whether submitted coroutines will run."""
        return self._thread.is_alive() and not self._stopped.is_set()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Stop the loop as soon as the running callback returns."""
        stop_loop(self.loop, self._stopped)

    def finalizer(self) -> Callable[[], None]:
        """``stop`` without a reference to this object."""
        loop, stopped = self.loop, self._stopped
        return lambda: stop_loop(loop, stopped)


def stop_loop(loop: asyncio.AbstractEventLoop, stopped: threading.Event) -> None:
    """Stop the loop and end its thread."""
    stopped.set()
    try:
        loop.call_soon_threadsafe(loop.stop)
    except RuntimeError:
        return  # it has ended already


def _run(loop: asyncio.AbstractEventLoop, stopped: threading.Event, submitted: set[asyncio.Task[None]]) -> None:
    mark_audit_thread()
    asyncio.set_event_loop(loop)
    while not stopped.is_set():
        try:
            loop.run_forever()
        except BaseException as error:  # raised by a foreign task on this loop
            log.error(
                "A task raised in the event loop of %r; the loop continues.",
                threading.current_thread().name,
                exc_info=error,
            )
    try:
        _cancel(loop, set(submitted))  # submitted tasks first, which cancel their own subtasks
        _cancel(loop, asyncio.all_tasks(loop))
        loop.run_until_complete(loop.shutdown_asyncgens())
    except BaseException as error:
        log.error("The event loop of %r ended with an error.", threading.current_thread().name, exc_info=error)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _cancel(loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=LEAVE))
