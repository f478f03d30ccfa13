"""A turn waits for its store once, for as long as it may, and others do not make it longer."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safi_agent import OutboxError
from safi_agent.store.timeout_budget import STORE_TIMEOUT, TimeoutBudget, current_timeout_budget, shared_timeout_budget
from tests.safi_agent.postgres_server import Server

TURNS = 6
WAIT = 1.0


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process writes; SQLite makes no difference between that and another connection."""
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.execute("ROLLBACK")
        db.close()


def timed(safi: Any, prompt: str) -> tuple[float, str]:
    start = time.monotonic()
    try:
        with shared_timeout_budget(WAIT):
            safi.invoke(prompt)
    except OutboxError as error:
        return time.monotonic() - start, error.cause
    return time.monotonic() - start, ""


def test_turns_at_a_locked_store_each_wait_their_own_time(make: Any, tmp_path: Path) -> None:
    safi = make()
    safi.invoke("a")
    safi.drain()
    with locked(tmp_path / "safi.db"), ThreadPoolExecutor(TURNS) as pool:
        for took, cause in pool.map(lambda n: timed(safi, str(n)), range(TURNS)):
            assert cause == "TimeoutError"
            assert took < WAIT * TURNS / 2  # one behind the other they would take from 1 to 6 times as long
        assert safi._auditor.store.feedback_note("another key") == ""  # reading waits for nobody
    assert timed(safi, "b")[1] == ""
    assert safi.drain() == 1


def test_a_turn_goes_on_as_soon_as_the_store_is_free(make: Any, tmp_path: Path) -> None:
    safi = make()
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "safi.db"):
            turn = pool.submit(safi.invoke, "a")
            time.sleep(0.3)
            assert not turn.done()
        assert turn.result(20).response_metadata["safi"]["turn"] == 1


def test_the_time_for_which_a_transaction_has_waited_is_missing_to_the_next(make: Any, tmp_path: Path) -> None:
    store = make()._auditor.store
    with shared_timeout_budget(0.5) as left, locked(tmp_path / "safi.db"):
        for _ in range(3):
            start = time.monotonic()
            with pytest.raises(OutboxError):
                store.add_turn({"id": "a", "key": "k", "valueSet": "s"}, "v", "", audit=True)
        assert left.left == 0
        assert time.monotonic() - start < 0.4


def test_one_allowance_is_shared_by_what_is_inside_and_ends_with_it() -> None:
    assert current_timeout_budget().left == STORE_TIMEOUT
    with shared_timeout_budget(2) as outer:
        with shared_timeout_budget(9) as inner:
            assert current_timeout_budget() is inner is outer

        async def later() -> float:
            await asyncio.sleep(0.01)
            return current_timeout_budget().left

        async def left_running() -> "asyncio.Task[float]":
            with shared_timeout_budget(2):
                return asyncio.create_task(later())

    async def run() -> float:
        return await (await left_running())

    assert asyncio.run(run()) == STORE_TIMEOUT
    waiting = TimeoutBudget(0).wait()
    assert (waiting.left, waiting.pause()) == (0, False)


@pytest.mark.slow
def test_a_locked_table_of_postgresql_is_waited_for_once(database: str, make: Any, postgres: Server) -> None:
    psycopg = pytest.importorskip("psycopg")
    safi = make(store=database)
    safi.invoke("a")
    safi.drain()
    name = database.rpartition("/")[2]
    with psycopg.connect(host="127.0.0.1", port=postgres.port, user="safi", dbname=name) as other:
        other.execute("LOCK TABLE safi_memory IN ACCESS EXCLUSIVE MODE")
        took, cause = timed(safi, "b")
    assert cause in ("LockNotAvailable", "OperationalError")
    assert took < 10 * WAIT
    assert timed(safi, "c")[1] == ""


def test_a_long_transaction_of_another_thread_counts_too(make: Any) -> None:
    store = make()._auditor.store
    there, go = threading.Event(), threading.Event()

    def hold() -> None:
        with store.database.transaction():
            there.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    there.wait(20)
    with shared_timeout_budget(0.3), pytest.raises(OutboxError, match="TimeoutError"):
        store.feedback_note("k")
    go.set()
    thread.join()
    assert store.feedback_note("k") == ""
