"""What of a judge's rows is used, and what is as if it were absent."""

import itertools
import math

import pytest
from pydantic import ValidationError

from safi_agent import Finding
from safi_agent.ledger import ContinuousFinding, read_ledger
from tests.safi_agent.fakes import GATED, THREE


def row(value: str = "Truth", score: object = 1, confidence: object = 0.5, **more: object) -> dict[str, object]:
    return {"value": value, "score": score, "confidence": confidence, "reason": "r", **more}


@pytest.mark.parametrize("score", [-1, 0, 0.5, 1, -1.0, 1.0])
def test_the_four_scores_are_taken(score: float) -> None:
    assert Finding(value="a", score=score, confidence=1).score == score


@pytest.mark.parametrize("score", [None, "1", "N/A", math.nan, math.inf, 5, -2, 0.3, True, [1]])
def test_other_scores_are_refused_with_what_is_allowed(score: object) -> None:
    with pytest.raises(ValidationError, match=r"Expected a score in \(-1.0, 0.0, 0.5, 1.0\)"):
        Finding(value="a", score=score, confidence=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [None, "high", math.nan, -0.1, 1.1, True])
def test_other_confidences_are_refused(confidence: object) -> None:
    with pytest.raises(ValidationError, match=r"Expected a confidence in \[0, 1\]"):
        Finding(value="a", score=1, confidence=confidence)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        row(score=None),
        row(score=math.nan),
        row(score=5.0),
        row(score=0.3),
        row(score=True),
        row(confidence="N/A"),
        row(confidence=2),
        row(value="Unknown"),
        {"value": "Truth"},
        row(value=3),  # type: ignore[arg-type]
        "Truth: 1",
        None,
        [],
    ],
)
def test_such_a_row_is_unscored_and_harms_no_other(bad: object) -> None:
    read = read_ledger([bad, row("Care"), row("Thrift")], THREE)
    assert list(read.findings) == ["care", "thrift"]
    assert read.unscored == ("Truth",)


def test_of_two_rows_the_lower_score_stays_in_either_order() -> None:
    for order in ([row(score=1), row("TRUTH ", score=-1)], [row(score=-1), row(score=1)]):
        assert read_ledger(order, THREE).findings["truth"].score == -1


@pytest.mark.parametrize(("score", "kept"), [(1, 0.2), (0.5, 0.2), (-1, 0.9)])
def test_of_two_rows_of_one_score_the_worse_one_stays_in_either_order(score: float, kept: float) -> None:
    for order in ((0.2, 0.9), (0.9, 0.2)):
        read = read_ledger([row(score=score, confidence=confidence) for confidence in order], THREE)
        assert read.findings["truth"].confidence == kept


def test_rows_carry_the_declared_name() -> None:
    assert read_ledger([row("  tRuTh ")], THREE).findings["truth"].value == "Truth"


def test_more_than_half_of_the_scored_values_and_every_gate_must_be_there() -> None:
    gate = row("No Harm")
    assert not read_ledger([], THREE).covered
    assert not read_ledger([row()], THREE).covered
    assert read_ledger([row(), row("Care")], THREE).covered
    assert not read_ledger([row(), row("Care"), row("Thrift")], GATED).covered
    assert read_ledger([row(), row("Care"), gate], GATED).covered
    assert not read_ledger([row(), gate], GATED).covered


def test_exactly_half_is_not_enough() -> None:
    from safi_agent import load_values

    four = load_values({"name": "four", "values": [{"name": n} for n in "abcd"]})
    assert not read_ledger([row("a"), row("b")], four).covered
    assert read_ledger([row("a"), row("b"), row("c")], four).covered


def test_other_scores_in_range_only_where_they_were_asked_for() -> None:
    assert not read_ledger([row(score=0.3)], THREE).findings
    assert read_ledger([row(score=0.3)], THREE, ContinuousFinding).findings["truth"].score == 0.3
    assert not read_ledger([row(score=1.3)], THREE, ContinuousFinding).findings


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("kind", [Finding, ContinuousFinding])
def test_a_finding_that_was_made_without_validation_is_held_to_it(kind: type[Finding]) -> None:
    odd = [0, 1, -1, 0.5, -0.0, 0.25, 2, math.nan, math.inf, True, "1", None, [], 10**400]
    for value, score, confidence, reason in itertools.product(["Truth", None, 7], odd, odd, ["so", None]):
        row = {"value": value, "score": score, "confidence": confidence, "reason": reason}
        try:
            expected = {"truth": kind.model_validate(row | {"reason": reason or ""})}
        except ValidationError:
            expected = {}
        assert read_ledger([kind.model_construct(**row)], THREE, kind).findings == expected
