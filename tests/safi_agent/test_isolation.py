"""No door lets a draft out that the Will has not approved, nor anything else of what happens inside."""

import asyncio
import logging
from typing import Any

import pytest

from safi_agent import SafiChain
from tests.safi_agent.fakes import VIOLATION, Fake, approve
from tests.safi_agent.observers import DOORS, Watcher, secret
from tests.safi_agent.reachable_objects import found


def violating(make: Any, word: str, how: int) -> SafiChain:
    """A draft with the word in it that is refused, in one of several ways."""
    draft = f"Well: {word}.\n<reflection>I thought of {word}.</reflection>"
    will: Any = [
        VIOLATION.replace("it breaks", f"{word} breaks"),
        f"not JSON {word}",
        RuntimeError(f"judge fell over {word}"),
        "{}",
        f'{{"decision": "perhaps {word}", "reason": "{word}", "gates": []}}',
    ][how]
    return make(Fake(intellect=draft, will=will), store=None, log=None)


@pytest.mark.filterwarnings("ignore:astream_log is deprecated")
@pytest.mark.parametrize("how", range(5))
def test_a_violating_draft_leaves_by_no_door(make: Any, how: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "safi_agent")
    word = secret()
    safi = violating(make, word, how)
    for door in DOORS:
        seen = door(safi)
        assert "No." in seen, f"the door was not tried: {door.__name__}"
        assert word not in seen, door.__name__
    safi.drain()


@pytest.mark.filterwarnings("ignore:astream_log is deprecated")
@pytest.mark.parametrize("door", DOORS)
def test_an_approved_draft_leaves_without_its_reflection_or_the_wills_reason(make: Any, door: Any) -> None:
    thought, reason = secret(), secret()
    model = Fake(intellect=f"Good.\n<reflection>{thought}</reflection>", will=approve().replace("fine", reason))
    safi = make(model, store=None, log=None)
    seen = door(safi)
    safi.drain()
    assert "Good." in seen
    assert thought not in seen
    assert reason not in seen


@pytest.mark.filterwarnings("ignore:astream_log is deprecated")
@pytest.mark.parametrize("door", DOORS)
def test_a_bound_model_opens_no_door(make: Any, door: Any) -> None:
    word = secret()
    model = Fake(intellect=f"Well: {word}.", will=VIOLATION)
    safi = make(model.bind(stop=["X"]), will_model=model.bind(stop=["Y"]), store=None, log=None)
    seen = door(safi)
    safi.drain()
    assert "No." in seen, "the door was not tried"
    assert word not in seen


@pytest.mark.parametrize("awaited", [False, True])
def test_what_a_failing_model_says_is_in_no_exception(make: Any, awaited: bool) -> None:
    word = secret()
    watcher = Watcher()
    safi = make(Fake(intellect=ValueError(f"could not parse {word}")), store=None, log=None)
    config: Any = {"callbacks": [watcher]}
    with pytest.raises(Exception, match="no draft") as caught:
        asyncio.run(safi.ainvoke("q", config)) if awaited else safi.invoke("q", config)
    assert found(caught.value, word, __file__) == []
    assert word not in repr(watcher.seen)
    assert "on_chain_error" in repr(watcher.seen)


def test_with_a_violation_raised_nothing_of_the_draft_is(make: Any) -> None:
    word = secret()
    safi = make(Fake(intellect=word, will=VIOLATION), store=None, log=None, raise_on_violation=True)
    with pytest.raises(Exception, match=r"^No\.$") as caught:
        safi.invoke("q")
    assert found(caught.value, word, __file__) == []


def test_a_tracer_of_the_operator_sees_inside_once_for_answer_and_audit(make: Any) -> None:
    operators, callers = Watcher(), Watcher()
    safi = make(Fake(will=VIOLATION, intellect="inner words"), store=None, log=None, tracers=[operators])
    safi.invoke("q", {"callbacks": [callers]})
    assert "inner words" in repr(operators.seen)
    assert "inner words" not in repr(callers.seen)


def test_the_audit_is_a_run_of_its_own_without_the_callers_callbacks(make: Any) -> None:
    watcher = Watcher()
    safi = make(store=None, log=None)
    safi.invoke("q", {"callbacks": [watcher]})
    before = len(watcher.seen)
    assert safi.drain() == 1
    assert len(watcher.seen) == before
    assert "Conscience" not in repr(watcher.seen)
