"""One event for each value of an audit."""

import json
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanProcessor
from opentelemetry.trace import NoOpTracer

from safi_agent.telemetry import commits, spans
from tests.safi_agent.fakes import VIOLATION, Fake, in_turn, ledger
from tests.safi_agent.telemetry.exported import Exported

SCORES = {"Truth": -1, "Care": 0, "Thrift": 0.5}


def rows(scores: dict[str, float]) -> str:
    found = [{"value": name, "score": s, "confidence": 0.8, "reason": "so"} for name, s in scores.items()]
    return json.dumps({"ledger": found})


def invoke(safi: Any) -> str:
    turn_id = str(safi.invoke("q").response_metadata["safi"]["turnId"])
    safi.drain()
    return turn_id


LABELS = {-1: "violated", 0: "omitted", 0.5: "partly affirmed"}
EXPECTED = [
    {
        "gen_ai.evaluation.name": name,
        "gen_ai.evaluation.score.value": score,
        "gen_ai.evaluation.score.label": LABELS[score],
        "safi.confidence": 0.8,
    }
    for name, score in SCORES.items()
]


def test_each_value_has_an_event_at_the_span_of_the_turn(make: Any, exported: Exported) -> None:
    invoke(make(Fake(conscience=rows(SCORES))))
    assert [event.event_name for event in exported.events] == ["gen_ai.evaluation.result"] * 3
    assert [dict(event.attributes) for event in exported.events] == EXPECTED
    span = exported.one("invoke_workflow safi")
    assert {(event.trace_id, event.span_id) for event in exported.events} == {
        (span.context.trace_id, span.context.span_id)
    }
    assert exported.one("Spirit").events == ()


def test_without_a_logger_provider_they_are_events_of_the_spirits_span(make: Any, traces_only: Exported) -> None:
    invoke(make(Fake(conscience=rows(SCORES))))
    events = traces_only.one("Spirit").events
    assert [event.name for event in events] == ["gen_ai.evaluation.result"] * 3
    assert [dict(event.attributes or {}) for event in events] == EXPECTED
    assert traces_only.events == []


def test_an_event_without_a_span_has_the_id_of_the_answer(
    make: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "tracer", NoOpTracer())
    safi = make(Fake(conscience=rows(SCORES)))
    turn = invoke(safi)
    more = {"gen_ai.response.id": f"safi-{turn}"}
    assert [dict(event.attributes) for event in exported.events] == [{**one, **more} for one in EXPECTED]


def test_a_failed_audit_and_a_refusal_have_none(make: Any, exported: Exported) -> None:
    safi = make(Fake(will=in_turn(VIOLATION, Fake().will), conscience=RuntimeError("down")))
    invoke(safi)
    invoke(safi)
    assert exported.events == []
    assert len(exported.named("Spirit")) == 1


def test_a_value_that_could_not_be_scored_has_none(make: Any, exported: Exported) -> None:
    invoke(make(Fake(conscience=rows({"Truth": 1, "Care": 1}))))
    told = [
        (event.attributes["gen_ai.evaluation.name"], event.attributes["gen_ai.evaluation.score.label"])
        for event in exported.events
    ]
    assert told == [("Truth", "affirmed"), ("Care", "affirmed")]


def test_each_audit_is_reported_once_though_its_turns_are_committed_together(make: Any, exported: Exported) -> None:
    safi = make(Fake(audit_delay=0.05))
    messages = safi.batch([f"q{i}" for i in range(20)])
    safi.drain()
    assert len(exported.events) == 3 * len(messages)
    turns = {span.context.span_id: span.context.trace_id for span in exported.named("invoke_workflow safi")}
    assert len(turns) == len(messages)
    assert {(event.span_id, event.trace_id) for event in exported.events} == set(turns.items())


def test_telemetry_that_fails_loses_no_audit(
    make: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(SpanProcessor):
        def on_start(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("start")

    def fail(*_: Any) -> Any:
        raise RuntimeError("no logger")

    monkeypatch.setattr(commits, "get_logger_provider", fail)
    safi = make()
    turn = invoke(safi)
    assert safi.audit(turn).score == 7
    assert "The telemetry of 1 audits could not be reported." in caplog.text


@pytest.mark.slow
def test_with_a_queue(database: str, make: Any, exported: Exported) -> None:
    safi = make(Fake(conscience=rows(SCORES)), store=database)
    invoke(safi)
    assert [dict(event.attributes) for event in exported.events] == EXPECTED
    assert exported.tree["Spirit"] == exported.tree["invoke_agent Conscience"] == "invoke_workflow safi"


def test_continuous_scores_have_labels_too(make: Any, exported: Exported) -> None:
    invoke(make(Fake(conscience=ledger(score=-0.25)), score_mode="continuous"))
    assert {event.attributes["gen_ai.evaluation.score.label"] for event in exported.events} == {"violated"}
