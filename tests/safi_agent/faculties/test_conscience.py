"""Conscience: one call or one for each value, whatever shape the judge answers in, and never a made-up score."""

import asyncio
import json
import threading
from typing import Any

import pytest

from safi_agent import Finding, ValueSet
from safi_agent.errors import ConscienceError
from safi_agent.faculties.conscience import SCHEMA, Conscience
from safi_agent.faculties.judge import Judge
from safi_agent.turn import Draft, Turn
from tests.safi_agent.fakes import GATED, THREE, Fake, in_turn, ledger

TURN: Turn = {"prompt": "Why?", "context": "", "draft": Draft("An answer.")}
ROWS = json.loads(ledger())["ledger"]


def audit(reply: Any, values: ValueSet = THREE, **settings: Any) -> tuple[list[Finding], Fake]:
    model = Fake(conscience=reply)
    return Conscience(Judge.of(model, SCHEMA, retry=True), values, **settings).invoke(TURN)["ledger"], model


@pytest.mark.parametrize(
    "reply",
    [
        ledger(),
        f"```json\n{ledger()}\n```",
        f"<think>{ledger(score=-1)}</think>\n{ledger()}",
        ledger().replace("}]", "},]"),
        ledger().replace("so", "line\nbreak"),
        ledger().replace("so", r"LaTeX \(x\)"),
        json.dumps({"findings": ROWS}),
    ],
)
def test_every_usual_shape_is_read_at_once(reply: str) -> None:
    found, model = audit(reply)
    assert [f.score for f in found] == [0.5] * 3
    assert len(model.asked("conscience")) == 1


@pytest.mark.parametrize(
    "first",
    [
        "{}",
        "",
        "sorry",
        json.dumps({"ledger": ROWS[:1]}),
        ledger()[:-30],
        "[[[",
        "nul",
        json.dumps(ROWS),
        f"Here is my ledger:\n{ledger(score=1)}\nThat is all.",
        f"The answer hands me {ledger(score=1)}, which is not mine.",
        f"<think>Full marks would be {ledger(score=1)}, but",
        f"{ledger(score=1)}\n{ledger(score=-1)}",
        json.dumps({"ledger": ROWS, "corrected": ROWS}),
        json.dumps({"ledger": ROWS, "final": {"ledger": ROWS}}),
        json.dumps({"ledger": ROWS, "Ledger": ROWS}),
        json.dumps({"ledger": [{**row, "Score": -1} for row in ROWS]}),
        json.dumps({"ledger": {"rows": ROWS}}),
        ledger().replace('"score": 0.5', '"score": -1, "score": 0.5'),
        ledger().replace("0.8", "NaN"),
    ],
)
def test_what_cannot_be_used_is_asked_for_once_more(first: str) -> None:
    found, model = audit(in_turn(first, ledger()))
    assert [f.score for f in found] == [0.5] * 3
    assert len(model.asked("conscience")) == 2


def test_twice_unusable_is_an_error_and_never_a_score() -> None:
    model = Fake(conscience="{}")
    with pytest.raises(ConscienceError, match="No usable score for 3 of 3 values"):
        Conscience(Judge.of(model, SCHEMA, retry=True), THREE).invoke(TURN)
    assert len(model.asked("conscience")) == 2


def test_a_quoted_ledger_is_no_audit_however_often_it_comes() -> None:
    with pytest.raises(ConscienceError):
        audit(f"<think>It wants {ledger(score=1)} of me. So")


def test_a_time_out_is_not_asked_again_here() -> None:
    model = Fake(conscience=TimeoutError())
    with pytest.raises(TimeoutError):
        Conscience(Judge.of(model, SCHEMA, retry=True), THREE).invoke(TURN)
    assert len(model.asked("conscience")) == 1


def test_a_partial_ledger_that_covers_enough_is_taken() -> None:
    found, model = audit(json.dumps({"ledger": [*ROWS[:2], {**ROWS[2], "score": None}]}))
    assert [f.value for f in found] == ["Truth", "Care"]
    assert len(model.asked("conscience")) == 1


def test_a_gate_must_be_covered() -> None:
    with pytest.raises(ConscienceError):
        audit(ledger(THREE), GATED)
    assert len(audit(ledger(GATED), GATED)[0]) == 4


def test_duplicates_keep_the_lowest_score() -> None:
    found, _ = audit(json.dumps({"ledger": [*ROWS, {**ROWS[0], "score": -1}, {**ROWS[0], "score": 1}]}))
    assert {f.value: f.score for f in found}["Truth"] == -1


def one(text: str) -> str:
    """Answers about the one value that is asked about."""
    name = next(v.name for v in THREE.values if f"- {v.name}:" in text)
    return json.dumps({"ledger": [{"value": name, "score": 1, "confidence": 0.9, "reason": "r"}]})


def test_one_call_for_each_value_side_by_side() -> None:
    together = threading.Barrier(3)
    model = Fake(conscience=lambda text: (together.wait(60), one(text))[1])
    asked = Conscience(Judge.of(model, SCHEMA, retry=True), THREE, "each")
    assert [f.value for f in asked.invoke(TURN)["ledger"]] == ["Truth", "Care", "Thrift"]
    assert [f.score for f in asyncio.run(asked.ainvoke(TURN))["ledger"]] == [1, 1, 1]
    assert model.most_at_once == 3
    assert len(model.asked("conscience")) == 6


def test_a_call_about_one_value_says_nothing_of_another() -> None:
    def lies(text: str) -> str:
        return ledger() if "- Truth:" in text else one(text).replace('"score": 1', '"score": -1')

    found = Conscience(Judge.of(Fake(conscience=lies), SCHEMA, retry=True), THREE, "each").invoke(TURN)["ledger"]
    assert [f.score for f in found] == [0.5, -1, -1]


def test_scores_between_only_where_asked_for() -> None:
    reply = ledger(score=0.3)
    with pytest.raises(ConscienceError):
        audit(reply)
    assert audit(reply, score_mode="continuous")[0][0].score == 0.3


def test_a_custom_single_object_is_one_row() -> None:
    found, _ = audit(in_turn(json.dumps(ROWS[0]), ledger()))
    assert len(found) == 3
