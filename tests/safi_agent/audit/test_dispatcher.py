"""One thread with a loop of its own, that takes nothing of the caller's context and sleeps when there is nothing."""

import asyncio
import threading
from concurrent.futures import Future
from contextvars import ContextVar

import pytest

from safi_agent.audit import dispatcher as module
from safi_agent.audit.dispatcher import Dispatcher, dispatcher

callers: ContextVar[str] = ContextVar("callers", default="nobody")


def test_there_is_one_in_a_process() -> None:
    assert dispatcher() is dispatcher()
    assert sum(t.name == "safi-dispatcher" for t in threading.enumerate()) >= 1


def test_work_runs_there_without_the_callers_context() -> None:
    seen: Future[tuple[str, str]] = Future()

    async def work() -> None:
        seen.set_result((callers.get(), threading.current_thread().name))

    token = callers.set("me")
    Dispatcher().submit(work)
    callers.reset(token)
    assert seen.result(5) == ("nobody", "safi-dispatcher")


def test_it_wakes_for_work_that_comes_while_it_dozes_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOZE", 0.0)
    monkeypatch.setattr(module, "GRACE", 0.0)
    done: list[Future[int]] = []
    one = Dispatcher()
    for i in range(2000):
        future: Future[int] = Future()
        done.append(future)

        async def work(future: Future[int] = future, i: int = i) -> None:
            await asyncio.sleep(0)
            future.set_result(i)

        one.submit(work)
    assert [future.result(5) for future in done] == list(range(2000))
