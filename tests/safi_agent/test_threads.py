"""The pool: so many at once, errors handed on, a stuck thread replaced."""

import threading
import time

import pytest

from safi_agent.threads import Threads


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

    pool = Threads(3, "t")
    assert pool.gather([lambda i=i: work(i) for i in range(12)]) == list(range(12))
    assert most == 3


def test_an_error_is_handed_on_and_the_thread_lives() -> None:
    pool = Threads(1, "t")
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(5)
    assert pool.submit(lambda: 1).result(5) == 1


def test_a_stuck_thread_is_replaced() -> None:
    pool, stop = Threads(1, "t"), threading.Event()
    hanging = pool.submit(stop.wait)
    waiting = pool.submit(lambda: "done")
    with pytest.raises(TimeoutError):
        waiting.result(0.05)
    pool.give_up(hanging)
    assert waiting.result(5) == "done"
    stop.set()
