"""Metrics of turns, audits and the backlog."""

import threading
from typing import Any

import pytest

from safi_agent import IntellectError
from safi_agent.errors import OutboxError
from safi_agent.telemetry import backlog
from tests.safi_agent.fakes import VIOLATION, Fake, approve, in_turn, ledger
from tests.safi_agent.telemetry.exported import Exported


def counts(exported: Exported, name: str) -> dict[tuple[str, ...], int]:
    """The values of a counter or the counts of a histogram, by the attributes other than the value set."""
    found = {}
    for attributes, point in exported.points(name):
        assert attributes.pop("safi.value_set") == "three"
        key = tuple(attributes[each] for each in sorted(attributes))
        found[key] = getattr(point, "value", None) or point.count
    return found


def test_decisions_and_durations_of_turns(make: Any, exported: Exported) -> None:
    will = in_turn(approve(), approve(), VIOLATION, RuntimeError("down"))
    drafts = in_turn(*["An answer."] * 4, ConnectionError("down"))
    safi = make(Fake(intellect=drafts, will=will), store=None, log=None)
    for prompt in "abcd":
        safi.invoke(prompt)
    with pytest.raises(IntellectError):
        safi.invoke("e")
    assert counts(exported, "safi.decisions") == {
        ("approve", "judge"): 2,
        ("violation", "judge"): 1,
        ("violation", "judge_failed"): 1,
        ("none", ""): 1,
    }
    assert counts(exported, "safi.turn.duration") == {
        ("approve",): 2,
        ("violation",): 2,
        ("ConnectionError", "none"): 1,
    }


def test_a_turn_that_is_repeated_is_no_new_decision(make: Any, exported: Exported) -> None:
    safi, config = make(store=None, log=None), {"configurable": {"safi_turn_id": "1"}}
    for _ in range(3):
        safi.invoke("q", config)
    assert counts(exported, "safi.decisions") == {("approve", "judge"): 1}
    assert counts(exported, "safi.turn.duration") == {("approve",): 3}


def test_durations_are_seconds(make: Any, exported: Exported) -> None:
    safi = make(Fake(delay=0.05, audit_delay=0.2), store=None, log=None)
    safi.invoke("q")
    safi.drain()
    ((_, turn),) = exported.points("safi.turn.duration")
    ((_, attempt),) = exported.points("safi.audit.duration")
    assert 0.1 <= turn.sum < 2
    assert 0.2 <= attempt.sum < 2


def test_audits_and_their_attempts(make: Any, exported: Exported) -> None:
    conscience = in_turn(ledger(), *[ConnectionError("down")] * 3, ConnectionError("down"), ledger())
    safi = make(Fake(will=in_turn(*[approve()] * 3, VIOLATION), conscience=conscience), store=None, log=None)
    for prompt in "abcd":
        safi.invoke(prompt)
        safi.drain()
    assert counts(exported, "safi.audits") == {("complete",): 2, ("failed",): 1}
    assert counts(exported, "safi.audit.duration") == {(): 2, ("ConnectionError",): 4}


@pytest.fixture
def settings(store: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"store": request.getfixturevalue("database")} if store == "postgres" else {}


@pytest.mark.parametrize("store", ["file", pytest.param("postgres", marks=pytest.mark.slow)])
def test_the_backlog_is_measured_when_metrics_are_collected(
    settings: dict[str, Any], make: Any, exported: Exported
) -> None:
    judging = threading.Event()

    def judged(_: str) -> str:
        judging.wait(10)
        return ledger()

    safi = make(Fake(conscience=judged), **settings)
    make(Fake(conscience=judged), **settings)  # a second chain of the same value set and store, which audits too
    assert [(a, p.value) for a, p in exported.points("safi.backlog.depth")] == [({"safi.value_set": "three"}, 0)]
    safi.batch(list("abc"))
    ((_, depth),) = exported.points("safi.backlog.depth")
    ((_, age),) = exported.points("safi.backlog.age")
    assert depth.value == 3
    assert 0 < age.value < 5
    judging.set()
    safi.drain()
    ((_, depth),) = exported.points("safi.backlog.depth")
    ((_, age),) = exported.points("safi.backlog.age")
    assert (depth.value, age.value) == (0, 0.0)


def test_a_closed_chain_is_measured_no_more(make: Any, exported: Exported) -> None:
    first, second = make(), make()
    first.close()
    first.close()
    assert len(exported.points("safi.backlog.depth")) == 1
    second.close()
    assert exported.points("safi.backlog.depth") == []


def test_a_store_that_fails_is_left_out(
    make: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise OutboxError("Locked")

    make()
    monkeypatch.setattr(backlog, "read_backlog", fail)
    assert exported.points("safi.backlog.depth") == []
    assert "The backlog of 'three' could not be measured (OutboxError)." in caplog.text
