"""Asking for one audit, and iterating over finished ones."""

import asyncio
import itertools
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent

from safi_agent import (
    Audit,
    AuditFailedError,
    AuditTimeoutError,
    Finding,
    SafiChain,
    SafiError,
    UnknownTurnError,
    create_safi_chain,
)
from safi_agent.audit.finished import AuditStream, wait_for_audit
from safi_agent.ledger import ContinuousFinding
from safi_agent.store import Store
from safi_agent.store.sqlite import Sqlite
from tests.safi_agent.agents.calling import Calling, ask
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, approve, in_turn, ledger

ROOT = Path(__file__).parents[3]
SOON = 2.0  # seconds; less than the interval at which a store is read again where commits are notified


def turn_id(message: Any) -> str:
    return str(message.response_metadata["safi"]["turnId"])


def ask_async(safi: Any, *arguments: Any) -> Audit:
    return asyncio.run(safi.aaudit(*arguments))


WAYS: list[Callable[..., Audit]] = [lambda safi, *arguments: safi.audit(*arguments), ask_async]
both_ways = pytest.mark.parametrize("audit_of", WAYS, ids=["sync", "async"])
stores = pytest.mark.parametrize(
    "store", ["file", "memory", pytest.param("postgres", marks=pytest.mark.slow)], ids=["file", "memory", "postgres"]
)


@pytest.fixture
def settings(store: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    if store == "file":
        return {}
    return {"store": None if store == "memory" else request.getfixturevalue("database")}


@stores
@both_ways
def test_an_audit_equals_its_line_in_the_log(
    audit_of: Callable[..., Audit], settings: dict[str, Any], make: Any, tmp_path: Path
) -> None:
    scores = in_turn(*(ledger(score=score) for score in (1, 0.5, -1)))
    safi = make(Fake(conscience=scores), **settings)
    audits = []
    for prompt in "abc":  # one after the other, so that each drift has its baseline
        audits.append(audit_of(safi, turn_id(safi.invoke(prompt))))
    safi.drain()
    lines = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    # By hand: all values affirmed, σ(0.8) = 9.1; half of that, σ(0.4) = 7.3; all broken, σ(−0.8) = 1.9.
    assert [audit.score for audit in audits] == [9, 7, 2]
    assert [audit.drift for audit in audits] == [None, pytest.approx(0, abs=1e-9), 1.0]
    assert audits[2].ledger[0] == Finding(value="Truth", score=-1, confidence=0.8, reason="so")
    assert [audit.position for audit in audits] == [1, 2, 3]
    for audit, line in zip(audits, lines, strict=True):
        assert (audit.turn_id, audit.status) == (line["turnId"], "complete")
        assert {**line, **audit.record} == line
        assert set(line) - set(audit.record) == {"line", "prev", "mac"}


@both_ways
@pytest.mark.parametrize("store", ["file", "memory"])
def test_waiting_for_an_audit_ends_when_it_is_committed(
    audit_of: Callable[..., Audit], settings: dict[str, Any], make: Any
) -> None:
    judging = threading.Event()

    def judged(_: str) -> str:
        judging.wait(10)
        return ledger()

    safi = make(Fake(conscience=judged), **settings)
    asked = turn_id(safi.invoke("q"))
    with pytest.raises(AuditTimeoutError, match=r"was not finished within 0\.05 s"):
        audit_of(safi, asked, 0.05)
    threading.Timer(0.2, judging.set).start()
    begun = time.monotonic()
    assert audit_of(safi, asked).score == 7
    assert 0.15 < time.monotonic() - begun < SOON, "it was not woken by the commit"


def test_waiting_for_an_audit_does_not_wait_for_hooks(make: Any) -> None:
    called = threading.Event()
    safi = make(Fake(conscience=ledger(score=-1)), hooks=[lambda _: called.wait(10)])
    begun = time.monotonic()
    assert safi.audit(turn_id(safi.invoke("q"))).score == 2
    assert time.monotonic() - begun < SOON
    called.set()


@both_ways
def test_an_unknown_turn_is_an_error_at_once(audit_of: Callable[..., Audit], make: Any) -> None:
    safi = make()
    begun = time.monotonic()
    with pytest.raises(UnknownTurnError, match="expected the id of a turn in this store, got 'nothing'"):
        audit_of(safi, "nothing")
    assert time.monotonic() - begun < SOON


@both_ways
@pytest.mark.parametrize("timeout", [-1, float("nan"), True])
def test_a_timeout_is_none_or_at_least_0(audit_of: Callable[..., Audit], timeout: Any, make: Any) -> None:
    with pytest.raises(ValueError, match=r"^timeout: expected None or a number of at least 0, got (-1|nan|True)\.$"):
        audit_of(make(), "any", timeout)


@both_ways
def test_a_failed_audit_is_an_error_until_it_is_repeated(audit_of: Callable[..., Audit], make: Any) -> None:
    word = "canary"
    model = Fake(conscience=in_turn(*[RuntimeError(word)] * 3, ledger(score=1)), intellect=lambda _: word)
    safi = make(model)
    failed = turn_id(safi.invoke("q"))
    with pytest.raises(AuditFailedError, match=r"The audit failed \(RuntimeError, 3 attempts\)\. chain\.rea") as caught:
        audit_of(safi, failed)
    assert word not in repr(caught.value.args)
    assert safi.reaudit([failed]) == 1
    repeated = audit_of(safi, failed)
    assert (repeated.score, repeated.record["reauditOf"]) == (9, failed)
    assert repeated.turn_id != failed
    assert audit_of(safi, repeated.turn_id) == repeated


@both_ways
def test_a_refusal_has_the_status_none(audit_of: Callable[..., Audit], make: Any) -> None:
    safi = make(Fake(will=VIOLATION))
    audit = audit_of(safi, turn_id(safi.invoke("q")))
    assert (audit.status, audit.ledger, audit.score, audit.drift) == ("none", (), None, None)
    assert audit.record["willDecision"] == "violation"


def test_scores_between_the_discrete_ones(make: Any) -> None:
    safi = make(Fake(conscience=ledger(score=0.25)), score_mode="continuous")
    audit = safi.audit(turn_id(safi.invoke("q")))
    assert {type(row) for row in audit.ledger} == {ContinuousFinding}
    assert {row.score for row in audit.ledger} == {0.25}


def test_a_failed_audit_of_an_erased_turn_is_not_said_to_be_repeatable(make: Any) -> None:
    safi = make(Fake(conscience=RuntimeError("x")))
    failed = turn_id(safi.invoke("q"))
    safi.drain()
    safi.erase([failed])
    assert safi.reaudit([failed]) == 0
    with pytest.raises(AuditFailedError, match=r"attempts\)\. The turn is erased, so its audit cannot be repeated\.$"):
        safi.audit(failed)


@pytest.mark.parametrize(
    "error",
    [
        UnknownTurnError("t"),
        AuditTimeoutError("t", 3.0),
        AuditFailedError("t", "It failed."),
        AuditFailedError("t", "It failed.", True),
    ],
)
def test_the_errors_can_be_pickled(error: SafiError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.slow
def test_many_concurrent_waits_use_few_threads_and_do_not_block_the_event_loop(make: Any) -> None:
    judging = threading.Event()

    def judged(_: str) -> str:
        judging.wait(10)
        return ledger()

    safi = make(Fake(conscience=judged), store=None, log=None)
    ids = [turn_id(message) for message in safi.batch([f"q{i}" for i in range(100)])]

    async def wait_for_all() -> list[Audit]:
        waiting = [asyncio.ensure_future(safi.aaudit(i)) for i in ids]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        before = threading.active_count()
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 1)  # waiting tasks occupy no thread
        judging.set()
        assert threading.active_count() <= before + 1
        return await asyncio.gather(*waiting)

    assert {audit.turn_id for audit in asyncio.run(wait_for_all())} == set(ids)


def test_a_hook_cannot_wait_for_a_later_turn_of_its_own_key(make: Any) -> None:
    told: list[Any] = []
    second = threading.Event()

    def hook(alert: Any) -> None:
        second.wait(5)
        try:
            told.append(safi.audit(alert.turn_id).score)  # its own turn is committed
            safi.audit(waiting[0], 5)
        except RuntimeError as error:
            told.append(str(error))

    stop = threading.Event()
    replies = iter([lambda: ledger(score=-1), lambda: (stop.wait(10), ledger())[1]])
    safi = make(Fake(conscience=lambda _: next(replies)()), hooks=[hook])
    safi.invoke("a")
    waiting = [turn_id(safi.invoke("b"))]
    second.set()
    deadline = time.monotonic() + 5
    while len(told) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    assert told == [2, "audit: expected a thread outside of the audit branch, got one of its own. " + LATER]


LATER = "A hook cannot wait for itself."


def test_audits_of_an_agents_turns_can_be_waited_for(govern: Any) -> None:
    middleware = govern(store=None, log=None)
    message = ask(create_agent(Calling(), [], middleware=[middleware]))["messages"][-1]
    audit = middleware.audit(turn_id(message))
    assert (audit.status, audit.score) == ("complete", 7)
    assert asyncio.run(middleware.aaudit(turn_id(message))) == audit
    assert list(middleware.audits(timeout=0)) == [audit]


# Iterators


def listed(safi: Any, *arguments: Any, **named: Any) -> list[Audit]:
    return list(safi.audits(*arguments, **named))


def listed_async(safi: Any, *arguments: Any, **named: Any) -> list[Audit]:
    async def collect() -> list[Audit]:
        return [audit async for audit in safi.aaudits(*arguments, **named)]

    return asyncio.run(collect())


LISTS: list[Callable[..., list[Audit]]] = [listed, listed_async]
both_lists = pytest.mark.parametrize("list_of", LISTS, ids=["sync", "async"])


@stores
@both_lists
def test_finished_audits_come_in_the_order_of_their_commits(
    list_of: Callable[..., list[Audit]], settings: dict[str, Any], make: Any
) -> None:
    will = in_turn(approve(), VIOLATION, approve(), approve())
    conscience = in_turn(ledger(score=1), *[RuntimeError("down")] * 3, ledger(score=-1))
    safi = make(Fake(will=will, conscience=conscience), **settings)
    ids = []
    for prompt in "abcd":
        ids.append(turn_id(safi.invoke(prompt)))
        safi.drain()
    audits = list_of(safi, timeout=0)
    assert [(audit.turn_id, audit.status) for audit in audits] == [
        (ids[0], "complete"),
        (ids[2], "failed"),
        (ids[3], "complete"),
    ]
    assert [audit.turn_id for audit in list_of(safi, after=audits[0].position, timeout=0)] == [ids[2], ids[3]]
    assert list_of(safi, after=None, timeout=0) == []


@both_lists
def test_finished_audits_are_read_over_several_pages(
    list_of: Callable[..., list[Audit]], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safi_agent.audit.finished.PAGE", 3)
    safi = make(store=None, log=None)
    ids = {turn_id(message) for message in safi.batch(list("abcdefg"))}
    safi.drain()
    audits = list_of(safi, timeout=0)
    assert {audit.turn_id for audit in audits} == ids
    assert [audit.position for audit in audits] == list(range(1, 8))


@both_lists
@pytest.mark.parametrize("store", ["file", "memory"])
def test_the_iterator_waits_for_audits_and_ends_when_the_chain_is_closed(
    list_of: Callable[..., list[Audit]], settings: dict[str, Any], make: Any
) -> None:
    safi = make(Fake(audit_delay=0.3), **settings)  # so that the chain is closed before its audits are finished
    found: list[list[Audit]] = []
    reader = threading.Thread(target=lambda: found.append(list_of(safi)))
    reader.start()
    ids = [turn_id(safi.invoke(prompt)) for prompt in "abc"]
    safi.close()
    reader.join(5)
    assert [audit.turn_id for audit in found[0]] == ids


def test_an_iterator_is_woken_by_a_commit(make: Any) -> None:
    safi = make(store=None, log=None)
    turns = iter(safi.audits(after=None, timeout=10))
    threading.Timer(0.2, safi.invoke, ["q"]).start()
    begun = time.monotonic()
    assert next(turns).score == 7
    assert time.monotonic() - begun < 0.9, "it waited for the next read at its interval"


@both_lists
def test_the_iterator_ends_after_the_timeout(list_of: Callable[..., list[Audit]], make: Any) -> None:
    begun = time.monotonic()
    assert list_of(make(store=None, log=None), timeout=0.2) == []
    assert 0.15 < time.monotonic() - begun < SOON


@pytest.mark.parametrize("after", [-1, 1.5, True, "a"])
def test_a_position_is_none_or_a_whole_number(after: Any, make: Any) -> None:
    for method in ("audits", "aaudits"):
        with pytest.raises(ValueError, match=r"^after: expected None or a whole number of at least 0, got "):
            getattr(make(store=None, log=None), method)(after)


def test_the_iterator_skips_audits_of_other_value_sets(make: Any) -> None:
    safi, other = make(), make("offline", "civic")
    mine = turn_id(safi.invoke("a"))
    other.invoke("b")
    other.drain()
    safi.drain()
    assert [audit.turn_id for audit in safi.audits(timeout=0)] == [mine]


# Audits of other processes


@pytest.fixture
def other_store(make: Any, tmp_path: Path) -> Iterator[tuple[SafiChain, Store]]:
    """A chain, and a second store on its file that is not notified of its commits, as that of another process."""
    safi, store = make(), Store(Sqlite(f"sqlite:///{tmp_path}/safi.db"))
    yield safi, store
    store.database.engine.dispose()


def test_commits_that_are_not_notified_are_found_at_an_interval(
    other_store: tuple[SafiChain, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safi_agent.audit.finished.this_process", lambda: "another process")
    monkeypatch.setattr("safi_agent.audit.finished.ITERATION_POLL", 0.05)
    safi, store = other_store
    audits = iter(AuditStream(store, "three", 0, 5, lambda: False))
    for score in (7, 7):
        asked = turn_id(safi.invoke("q"))
        assert wait_for_audit(store, asked, 5).score == score
        assert next(audits).turn_id == asked


ANSWERS = """
import sys
from safi_agent import create_safi_chain
with create_safi_chain("offline", "civic", store=sys.argv[1], log=None) as safi:
    print(safi.invoke("When is glass collected?").response_metadata["safi"]["turnId"], flush=True)
"""


@pytest.mark.slow
def test_a_turn_of_another_process_can_be_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/safi.db"
    with create_safi_chain("offline", "civic", store=url, log=None) as safi:
        command = [sys.executable, "-c", ANSWERS, url]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            asked = process.stdout.readline().strip()
            assert safi.audit(asked).status == "complete"
            assert [audit.turn_id for audit in itertools.islice(safi.audits(), 1)] == [asked]
        assert process.returncode == 0


@pytest.mark.slow
@both_ways
def test_the_answering_process_can_wait_for_an_audit_of_a_worker(
    audit_of: Callable[..., Audit], database: str, make: Any
) -> None:
    web = make(store=database, audit_mode="worker")
    asked = turn_id(web.invoke("q"))
    with pytest.raises(AuditTimeoutError):
        audit_of(web, asked, 0.2)
    make(store=database)
    assert audit_of(web, asked, 20).score == 7
    assert [audit.turn_id for audit in web.audits(timeout=0)] == [asked]


def test_a_store_that_fails_is_an_error_without_its_text(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def fail(*_: Any) -> Any:
        raise OperationalError("SELECT secret", {}, Exception("secret"))

    safi = make(store=None, log=None)
    for name in ("find_audit", "load_finished"):
        monkeypatch.setattr(Store, name, fail)
    with pytest.raises(SafiError, match=r"^The store could not be read \(Exception\)\.$"):
        safi.audit("any")
    with pytest.raises(SafiError, match=r"^The store could not be read \(Exception\)\.$"):
        list(safi.audits(timeout=0))


def test_weights_behind_the_hand_computed_scores(make: Any) -> None:
    """The hand-computed scores above use these weights."""
    assert [value.weight for value in THREE.values] == [0.5, 0.3, 0.2]
