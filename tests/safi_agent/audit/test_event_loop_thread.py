"""An event loop in a thread: nothing of the caller's context comes along, and nothing that is raised in it ends it."""

import asyncio
import threading
import time
from concurrent.futures import Future
from contextvars import ContextVar

import pytest

from safi_agent.audit.event_loop_thread import EventLoopThread

callers: ContextVar[str] = ContextVar("callers", default="nobody")


def test_work_runs_on_the_thread_without_the_callers_context() -> None:
    seen: Future[tuple[str, str]] = Future()

    async def work() -> None:
        seen.set_result((callers.get(), threading.current_thread().name))

    token = callers.set("me")
    one = EventLoopThread("here")
    assert one.submit(work).result(5) is None
    callers.reset(token)
    assert seen.result(5) == ("nobody", "here")
    one.stop()


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
def test_the_loop_survives_any_exception_of_a_task(raised: type[BaseException]) -> None:
    done = threading.Event()

    async def falls() -> None:
        raise raised

    async def work() -> None:
        done.set()

    one = EventLoopThread("here")
    one.loop.call_soon_threadsafe(
        lambda: one.loop.create_task(falls()).add_done_callback(lambda task: task.exception())
    )
    one.submit(work)
    assert done.wait(5)
    assert one.alive
    one.stop()


def test_stopping_cancels_running_tasks_and_ends_the_thread() -> None:
    cancelled, begun = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()

    one = EventLoopThread("here")
    one.submit(work)
    assert begun.wait(5)
    one.stop()
    assert cancelled.wait(5)
    deadline = time.monotonic() + 10
    while not one.ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not one.alive
    one.stop()


def test_stopping_lets_a_submitted_task_end_the_tasks_that_it_started() -> None:
    said: list[str] = []
    began = threading.Event()

    async def inner() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            said.append("inner was cancelled")
            raise

    async def outer() -> None:
        task = asyncio.create_task(inner())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            said.append("outer ends it")
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task])

    one = EventLoopThread("here")
    ended = one.submit(outer)
    assert began.wait(10)
    one.stop()
    ended.result(10)
    assert said == ["outer ends it", "inner was cancelled"]
