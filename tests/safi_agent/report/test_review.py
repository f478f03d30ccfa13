"""Counts are of the whole log; what is kept of it is bounded."""

import math
from pathlib import Path

import pytest

from safi_agent.report.review import MOST_VALUES, review
from tests.safi_agent.report.records import ADRIFT, FAILED, LOW, REFUSED, record, various, write


def test_a_log_counted_by_hand(tmp_path: Path) -> None:
    low = record(4, **LOW, memoryKey="b")
    made = [record(1), record(2, **REFUSED), record(3, **FAILED), "torn {", low, record(5, **ADRIFT)]
    found = review(write(tmp_path / "log.json", made))
    assert (found.turns, found.unread, found.flagged, found.name) == (5, 1, 4, "log.json")
    assert [found.counts[reason] for reason in ("violation", "audit_failed", "review", "drift")] == [1, 1, 1, 1]
    assert found.counts["decision:approve"] == 4
    assert [entry.place for entry in found.entries()] == [6, 5, 3, 2, 1]
    assert list(found.keys["three"].turns) == [1, 2, 3, 5]
    assert list(found.keys["b"].scores) == [3]
    truth = list(found.values["Truth"])
    assert [None if math.isnan(score) else score for score in truth] == [0.5, None, None, 0.5, 0.5]


def test_a_value_that_comes_late_has_gaps_before(tmp_path: Path) -> None:
    row = {"value": "New", "score": -1, "confidence": 1, "reason": ""}
    found = review(write(tmp_path / "log.json", [record(1), record(2, conscienceLedger=[row])]))
    assert math.isnan(found.values["New"][0])
    assert found.values["New"][1] == -1
    assert math.isnan(found.values["Truth"][1])


def test_the_newest_and_the_newest_to_review_are_kept(tmp_path: Path) -> None:
    made = various(400, seed=1)
    found = review(write(tmp_path / "log.json", made), newest=20)
    sound = record(0)
    asked = ("willDecision", "auditStatus", "spiritScore", "drift")
    flagged = [i for i, made_one in enumerate(made, 1) if any(made_one[name] != sound[name] for name in asked)]
    assert found.flagged == len(flagged) > 40
    assert [entry.place for entry in found.entries()] == sorted({*range(381, 401), *flagged[-20:]}, reverse=True)


def test_names_without_end_do_not_grow_it_without_end(tmp_path: Path) -> None:
    rows = [{"value": f"v{i}", "score": 1, "confidence": 1, "reason": ""} for i in range(500)]
    assert len(review(write(tmp_path / "log.json", [record(1, conscienceLedger=rows)])).values) == MOST_VALUES


def test_a_file_that_is_not_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log: expected an existing file"):
        review(tmp_path / "none.json")
    with pytest.raises(
        ValueError, match=r"log: expected at least one record, got none in .* 1 lines could not be read"
    ):
        review(write(tmp_path / "log.json", ["{}"]))
    with pytest.raises(ValueError, match="newest: expected at least 1, got 0"):
        review(write(tmp_path / "log.json", [record(1)]), newest=0)
