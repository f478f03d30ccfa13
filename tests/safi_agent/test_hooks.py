"""Thresholds are strict, None triggers none of them, and offenders come worst first."""

from typing import Any

import pytest

from safi_agent.hooks import alert_kinds, offenders
from tests.safi_agent.fakes import GATED


def record(score: int | None, drift: float | None, status: str = "complete") -> dict[str, Any]:
    return {"spiritScore": score, "drift": drift, "auditStatus": status}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (record(6, 0.4), []),
        (record(5, 0.4), ["review"]),
        (record(6, 0.41), ["drift"]),
        (record(1, 1.0), ["review", "drift"]),
        (record(None, None, "none"), []),
        (record(10, None), []),
        (record(None, None, "failed"), ["audit_failed", "review"]),
    ],
)
def test_alerts_are_raised_beyond_the_thresholds(given: dict[str, Any], expected: list[str]) -> None:
    assert alert_kinds(given, 6, 0.4) == expected


@pytest.mark.parametrize("flag", ["all_omitted", "no_confidence"])
def test_a_score_that_rests_on_nothing_is_to_be_reviewed_whatever_the_threshold(flag: str) -> None:
    assert alert_kinds({**record(6, None), "flags": [flag]}, 1, 0.4) == ["review"]
    assert alert_kinds({**record(5, 0.5), "flags": [flag]}, 6, 0.4) == ["review", "drift"]
    assert alert_kinds({**record(6, None), "flags": ["not_shown"]}, 1, 0.4) == []


def row(value: str, score: float, confidence: float = 1) -> dict[str, Any]:
    return {"value": value, "score": score, "confidence": confidence}


def test_offenders_are_the_broken_by_weight_score_and_confidence_then_the_left_out_by_weight() -> None:
    assert offenders([row("Truth", 0), row("Care", -1), row("Thrift", 0)], GATED) == ("Care", "Truth", "Thrift")
    assert offenders([row("Truth", -1, 0.1), row("Care", -1, 0.9), row("Thrift", 1)], GATED) == ("Care", "Truth")
    assert offenders([row("Truth", -1), row("Care", -1), row("Thrift", -1), row("No Harm", -1)], GATED) == (
        *("No Harm", "Truth", "Care"),
    )
    assert offenders([row("Truth", 1), row("Unknown", -1)], GATED) == ()
