"""A line is read whoever wrote it; what is not what it should be is as if it were not there."""

from pathlib import Path
from typing import Any

import pytest

from safi_agent.report.entries import read, records
from tests.safi_agent.report.records import ADRIFT, FAILED, LOW, REFUSED, record


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, ()),
        (REFUSED, ("violation",)),
        (FAILED, ("audit_failed",)),
        (LOW, ("review",)),
        (ADRIFT, ("drift",)),
        ({**LOW, **ADRIFT}, ("review", "drift")),
        ({"spiritScore": 6, "drift": 0.4}, ()),
        ({"willDecision": "violation", "flags": ["shadow"]}, ("shadow",)),
        ({**REFUSED, "flags": "shadow"}, ("violation",)),
        ({"flags": ["shadow"]}, ()),
        ({**REFUSED, "willDecision": None}, ("intellect_failed",)),
        ({"spiritScore": 6, "flags": ["all_omitted", "review"]}, ("unfounded",)),
        ({"spiritScore": 5, "flags": ["no_confidence"]}, ("unfounded", "review")),
        ({"flags": "all_omitted"}, ()),
        ({"flags": [["all_omitted"], None, {}]}, ()),
        ({"notShown": ["an image"], "reauditOf": "t-0", "flags": ["not_shown"]}, ()),
    ],
)
def test_why_a_turn_is_to_be_reviewed(change: dict[str, Any], reasons: tuple[str, ...]) -> None:
    assert read(record(1, **change), 1, 6, 0.4).reasons == reasons


def test_thresholds_are_the_callers() -> None:
    assert read(record(1, spiritScore=7, drift=0.1), 1, 8, 0.05).reasons == ("review", "drift")


@pytest.mark.parametrize("wrong", [None, "7", True, float("nan"), float("inf"), 11, -1, [], {}])
def test_figures_out_of_range_are_none(wrong: Any) -> None:
    entry = read(record(1, spiritScore=wrong, drift=wrong, conscienceLedger=wrong), 1, 6, 0.4)
    assert (entry.score, entry.drift, entry.ledger, entry.reasons) == (None, None, {}, ())


def test_of_a_ledger_only_rows_with_a_name_and_a_score_count_and_spellings_of_a_name_are_one() -> None:
    rows = [
        {"value": "Non-Harm", "score": 0.5},
        {"value": "non\u2013harm", "score": -1},
        {"value": "Truth", "score": 5},
        {"value": 3, "score": 1},
        {"score": 1},
        "row",
        None,
    ]
    assert read(record(1, conscienceLedger=rows), 1, 6, 0.4).ledger == {"non\u2013harm": -1}


@pytest.mark.parametrize(("turn", "read_as"), [(4, 4), (None, 9), (0, 9), (10**30, 9), ("4", 9), (True, 9)])
def test_a_turn_without_a_usable_number_has_that_of_its_line(turn: Any, read_as: int) -> None:
    assert read(record(1, turn=turn), 9, 6, 0.4).turn == read_as


def test_lines_that_are_not_records_are_reported_with_their_numbers(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    path = tmp_path / "log.json"
    good = b'{"turnId": "a", "willDecision": "approve"}'
    path.write_bytes(b"\n".join([good, b"", b"[1]", b"{}", b"\xff\xfe", deep, good, b'{"turnId": "b", "wil']))
    found = list(records(path))
    assert [place for place, _ in found] == list(range(1, 9))
    assert [place for place, kept in found if kept] == [1, 7]
