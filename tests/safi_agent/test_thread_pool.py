"""The pool: so many at once, errors handed on, a stuck thread replaced."""

import threading
import time

import pytest

from safi_agent import thread_pool
from safi_agent.thread_pool import STUCK_PER_THREAD, ThreadPool


def test_results_come_in_order_and_no_more_run_at_once_than_allowed() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(i: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return i

    pool = ThreadPool(3, "t")
    assert pool.gather([lambda i=i: work(i) for i in range(12)]) == list(range(12))
    assert most == 3


def test_an_error_is_handed_on_and_the_thread_lives() -> None:
    pool = ThreadPool(1, "t")
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(5)
    assert pool.submit(lambda: 1).result(5) == 1


def test_a_stuck_thread_is_replaced() -> None:
    pool, stop = ThreadPool(1, "t"), threading.Event()
    hanging = pool.submit(stop.wait)
    waiting = pool.submit(lambda: "done")
    with pytest.raises(TimeoutError):
        waiting.result(0.05)
    pool.abandon(hanging)
    assert waiting.result(5) == "done"
    stop.set()


def test_threads_that_hang_are_replaced_up_to_a_bound_and_go_when_they_come_back() -> None:
    pool, stop = ThreadPool(2, "bounded"), threading.Event()

    def alive() -> int:
        return sum(thread.name == "bounded" for thread in threading.enumerate())

    begun = threading.Semaphore(0)
    for _ in range(50):
        if not pool.free_slots():
            break
        hanging = pool.submit(lambda: (begun.release(), stop.wait(60)))
        assert begun.acquire(timeout=60)
        pool.abandon(hanging)
    assert pool.stuck == alive() == 2 + STUCK_PER_THREAD * 2
    waiting = pool.submit(lambda: "done")
    stop.set()
    assert waiting.result(60) == "done"
    deadline = time.monotonic() + 60
    while alive() > 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pool.gather([lambda: 1, lambda: 2]) == [1, 2]


def test_failed_starts_are_not_counted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = ThreadPool(32, "t")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(40):
            with pytest.raises(RuntimeError, match="No thread 't' can be started"):
                pool.submit(lambda: 1)
        assert pool.gather([lambda: 1, lambda: 2]) == [1, 2]
    assert "can't start new thread" in caplog.text
    assert [pool.submit(lambda i=i: i).result(60) for i in range(3)] == [0, 1, 2]


def test_an_idle_thread_ends_and_another_takes_the_next_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "IDLE", 0.01)
    pool = ThreadPool(2, "idle")
    for i in range(200):
        assert pool.submit(lambda i=i: i).result(60) == i
        time.sleep(0.01 * (i % 3 == 0))
    deadline = time.monotonic() + 60
    while any(thread.name == "idle" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pool.free_slots() == 2


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_whatever_work_raises_is_handed_on(raised: type[BaseException]) -> None:
    def work() -> None:
        raise raised

    pool = ThreadPool(1, "t")
    with pytest.raises(raised):
        pool.submit(work).result(60)
    assert pool.submit(lambda: 1).result(60) == 1
