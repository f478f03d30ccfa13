"""Scores that rest on nothing are flagged, to be reviewed, and raise an alert; maps are named as what they are."""

from pathlib import Path
from typing import Any

import pytest

from safi_agent import assess
from safi_agent.faculties.spirit import linear
from safi_agent.ledger import ContinuousFinding
from safi_agent.record import Measure, unfounded
from safi_agent.values import ValueSet
from tests.safi_agent.fakes import GATED, THREE, Fake, approve, ledger
from tests.safi_agent.log_lines import lines


def flagged(values: ValueSet, *pairs: tuple[float, float]) -> list[str]:
    rows = [
        ContinuousFinding(value=v.name, score=s, confidence=c) for v, (s, c) in zip(values.values, pairs, strict=False)
    ]
    return unfounded(assess(rows, values), rows)


@pytest.mark.parametrize(
    ("pairs", "flags"),
    [
        ([(0, 1), (0, 1), (0, 1)], ["all_omitted"]),
        ([(0, 0), (0, 0), (0, 0)], ["all_omitted"]),
        ([(0, 1), (0, 1)], ["all_omitted"]),
        ([(0, 1), (0, 1), (0.5, 1)], []),
        ([(0, 1), (0, 1), (-1, 0.02)], []),
        ([(1, 0), (0.5, 0), (-1, 0)], ["no_confidence"]),
        ([(0, 1), (0, 1), (1, 0)], ["no_confidence"]),
        ([(1, 0.009), (1, 0.009), (1, 0.009)], ["no_confidence"]),
        ([(1, 0.5), (1, 0), (1, 0)], []),
        ([(1, 1)], []),  # too little for an audit, which is a flag of its own
    ],
)
def test_a_score_that_rests_on_nothing_is_flagged(pairs: list[tuple[float, float]], flags: list[str]) -> None:
    assert flagged(THREE, *pairs) == flags


@pytest.mark.parametrize("gate", [-1, 0, 1])
def test_a_gate_is_no_basis_of_a_score(gate: float) -> None:
    assert flagged(GATED, (0, 1), (0, 1), (0, 1), (gate, 1)) == ["all_omitted"]


@pytest.mark.parametrize(
    ("given", "score", "flags"),
    [
        (ledger(GATED, score=0), 6, ["all_omitted", "review"]),
        (ledger(GATED, score=1, confidence=0), 6, ["no_confidence", "review"]),
        (ledger(GATED, score=0.5, confidence=0.8), 7, []),
    ],
)
def test_it_is_in_the_record_and_a_hook_is_called(
    make: Any, tmp_path: Path, given: str, score: int, flags: list[str]
) -> None:
    alerts: list[Any] = []
    with make(Fake(will=approve(["No Harm"]), conscience=given), GATED, hooks=[alerts.append]) as safi:
        safi.invoke("a")
        safi.drain()
    (record,) = lines(tmp_path / "log.json")
    assert (record["spiritScore"], record["flags"], record["auditStatus"]) == (score, flags, "complete")
    assert [alert.kind for alert in alerts] == (["review"] if flags else [])


def test_a_map_that_only_has_the_name_of_the_default_is_told_apart() -> None:
    def square(confidence: float) -> float:
        return confidence**2

    square.__name__ = "identity"

    class Steep:
        def __call__(self, raw: float) -> float:
            return linear(2 * raw)

    told = Measure(phi=square, sigma=Steep()).parameters(THREE)
    assert told["phi"] == f"{__name__}.identity"
    assert "Steep object" in told["sigma"]
    assert (Measure().parameters(THREE)["phi"], Measure().parameters(THREE)["sigma"]) == ("identity", "linear")
