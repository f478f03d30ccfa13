"""Audits that are open are bounded: a turn waits, is refused, or goes on with a warning; depth and age are figures."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain.agents import create_agent

from safi_agent import Backlog, BacklogError, SafiError
from safi_agent.store.timeout_budget import shared_timeout_budget
from tests.safi_agent.agents.calling import Calling, ask
from tests.safi_agent.fakes import VIOLATION, Fake, ledger


class Gated:
    """A judge of audits that waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.model = Fake(conscience=self._judge)

    def _judge(self, _: str) -> str:
        self.go.wait(60)
        return ledger()


@pytest.fixture
def gated() -> Any:
    one = Gated()
    yield one
    one.go.set()


def turns(safi: Any, count: int) -> None:
    safi.batch([str(n) for n in range(count)], {"max_concurrency": 1})


def test_a_turn_waits_for_room_before_anyone_is_asked(make: Any, gated: Gated) -> None:
    safi = make(gated.model, max_pending=3)
    turns(safi, 3)
    asked = len(gated.model.asked("intellect"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(safi.invoke, "fourth")
        time.sleep(0.3)
        assert not waiting.done()
        assert len(gated.model.asked("intellect")) == asked
        gated.go.set()
        assert waiting.result(30).response_metadata["safi"]["turn"] == 4
    assert safi.drain() == 4
    assert safi.backlog() == Backlog(0, None)


def test_it_waits_no_longer_than_a_turn_may(make: Any, gated: Gated, caplog: pytest.LogCaptureFixture) -> None:
    safi = make(gated.model, max_pending=1)
    turns(safi, 1)
    for _ in range(3):
        start = time.monotonic()
        with (
            shared_timeout_budget(0.3),
            pytest.raises(BacklogError, match="1 audits are open, and max_pending is 1") as caught,
        ):
            safi.invoke("a canary")
        assert time.monotonic() - start < 5
        assert caught.value.depth == 1
        assert isinstance(caught.value, SafiError)
    assert len(gated.model.asked("intellect")) == 1
    assert caplog.text.count("new turns wait") == 1


def test_waiting_does_not_block_a_loop(make: Any, gated: Gated) -> None:
    safi = make(gated.model, max_pending=2)

    async def run() -> int:
        await asyncio.gather(*(safi.ainvoke(str(n)) for n in range(2)))
        waiting = [asyncio.create_task(safi.ainvoke(f"later {n}")) for n in range(20)]
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.01)
            ticks += 1
        assert not any(task.done() for task in waiting)
        gated.go.set()
        answers = await asyncio.gather(*waiting)
        assert sorted(a.response_metadata["safi"]["turn"] for a in answers) == list(range(3, 23))
        return ticks

    assert asyncio.run(run()) == 20
    assert safi.drain(60) == 22


def test_it_is_refused_at_once_where_that_was_chosen(make: Any, gated: Gated) -> None:
    safi = make(gated.model, max_pending=2, when_full="refuse")
    turns(safi, 2)
    with pytest.raises(BacklogError):
        safi.invoke("third")
    with pytest.raises(BacklogError):
        asyncio.run(safi.ainvoke("third"))
    assert len(gated.model.asked("intellect")) == 2
    gated.go.set()
    safi.drain()
    time.sleep(0.1)  # it is counted anew that often at most
    assert safi.invoke("third").response_metadata["safi"]["turn"] == 3


def test_it_goes_on_with_one_warning_where_that_was_chosen(
    make: Any, gated: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    safi = make(gated.model, max_pending=2, when_full="warn")
    turns(safi, 12)
    assert caplog.text.count("audits of 'three' are open, and max_pending is 2: new turns are answered anyway") == 1
    assert safi.backlog().depth == 12


@pytest.mark.parametrize("awaited", [False, True])
def test_turns_side_by_side_do_not_pass_the_bound_together(make: Any, gated: Gated, awaited: bool) -> None:
    gated.model.delay = 0.02
    safi = make(gated.model, max_pending=5)

    def one(n: int) -> bool:
        try:
            with shared_timeout_budget(0.5):
                asyncio.run(safi.ainvoke(str(n))) if awaited else safi.invoke(str(n))
        except BacklogError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        answered = sum(pool.map(one, range(16)))
    assert answered == 5 == safi.backlog().depth


def test_a_turn_that_was_answered_before_is_given_again_although_there_is_no_room(make: Any, gated: Gated) -> None:
    safi = make(gated.model, max_pending=1, when_full="refuse")
    named = {"configurable": {"safi_turn_id": "named"}}
    first = safi.invoke("a", named)
    assert safi.invoke("a", named).text == first.text


def test_refusals_and_failures_take_no_room(make: Any) -> None:
    safi = make(Fake(will=VIOLATION), max_pending=1, when_full="refuse")
    for _ in range(5):
        safi.invoke("a")
    failing = make(Fake(intellect=RuntimeError("x")), max_pending=1, when_full="refuse")
    kept = []
    for _ in range(5):
        with pytest.raises(SafiError) as caught:
            failing.invoke("a")
        kept.append(caught.value)
    assert not [error for error in kept if isinstance(error, BacklogError)]


@pytest.mark.slow
def test_depth_and_age_are_of_this_value_set_on_this_store_whoever_answered(
    database: str, make: Any, gated: Gated
) -> None:
    for store in ({}, {"store": database}):
        one, two = (make(gated.model, **store) for _ in range(2))
        assert one.backlog() == Backlog(0, None)
        start = time.time()
        turns(one, 3)
        time.sleep(0.2)
        found = two.backlog()
        assert found.depth == 3
        assert found.oldest is not None
        assert 0.2 <= found.oldest <= time.time() - start
        other = make(Fake(), {**one.values.model_dump(), "name": "another"}, **store)
        assert other.backlog() == Backlog(0, None)


def test_what_an_agent_says_waits_for_room_too(govern: Any, gated: Gated) -> None:
    middleware = govern(gated.model, max_pending=1, when_full="refuse")
    agent = create_agent(Calling(), [], middleware=[middleware])
    ask(agent)
    assert middleware.backlog().depth == 1
    for awaited in (False, True):
        with pytest.raises(BacklogError):
            ask(agent, awaited)


def test_none_is_no_bound(make: Any, gated: Gated) -> None:
    safi = make(gated.model, max_pending=None)
    turns(safi, 5)
    assert safi.backlog().depth == 5
