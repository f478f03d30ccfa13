"""The part of the report on a local judge."""

import math
from pathlib import Path
from typing import Any

import pytest

from safi_agent.report.local_judge import LocalJudgements, figure, section, table
from safi_agent.report.page import page
from safi_agent.report.review import review
from tests.safi_agent.report.records import record, write


def finding(value: str, score: float | None, judge: str | None, sure: bool = True) -> dict[str, Any]:
    return {"value": value, "score": score, "confidence": 0.9, "sure": sure, "judge": judge}


def judged(number: int, findings: list[dict[str, Any]], ledger: dict[str, float], checked: bool) -> dict[str, Any]:
    rows = [{"value": value, "score": score, "confidence": 1, "reason": ""} for value, score in ledger.items()]
    local = {"card": "c", "novelty": 0.1, "new": False, "checked": checked, "disagreement": None, "findings": findings}
    return record(number, conscienceLedger=rows, localJudge=local)


ONE = judged(
    1,
    [finding("Truth", -1, "gpt"), finding("Care", 1, "gpt"), finding("Thrift", 1, "gpt", sure=False)],
    {"Truth": -1, "Care": -1, "Thrift": -1},
    checked=True,
)
TWO = judged(
    2, [finding("Truth", 1, "local"), finding("Care", -1, "gpt", sure=False)], {"Truth": 1, "Care": 1}, checked=False
)
THREE = judged(3, [finding("Truth", 1, "local"), finding("Care", 1, None, sure=False)], {"Truth": 1}, checked=False)


def test_who_judged_and_where_the_two_disagree_are_counted() -> None:
    found = LocalJudgements()
    for place, one in enumerate([ONE, TWO, record(9), THREE], 1):
        found.add(place, one)
    assert list(found.places) == [1, 2, 4]
    assert list(found.escalated) == [1, 0.5, 0]
    assert found.agreement[0] == 0.5  # of Truth and Care, on which it was sure
    assert all(map(math.isnan, found.agreement[1:]))
    assert found.values["Truth"] == {"escalated": 1, "compared": 1, "agree": 1, "local": 2}
    assert found.values["Care"] == {
        "escalated": 2,
        "unscored": 1,
        "compared": 2,
        "only model broken": 1,
        "only local broken": 1,
    }


@pytest.mark.parametrize(
    "local",
    [None, 3, [], {}, {"findings": 3}, {"findings": [3]}, {"findings": [{}], "checked": 1}],
    ids=repr,
)
def test_what_is_malformed_counts_as_missing(local: Any) -> None:
    found = LocalJudgements()
    found.add(1, record(1, localJudge=local))
    assert set(found.values) <= {"None"}


def test_the_page_has_it_where_a_local_judge_took_part(tmp_path: Path) -> None:
    hostile = judged(1, [finding("<script>alert(1)</script>", 1, "local")], {}, checked=False)
    contents = review(write(tmp_path / "log.json", [ONE, TWO, hostile]))
    text = page(contents)
    assert "Local judge" in text
    assert "<script>alert(1)" not in text
    assert "<td>Truth</td><td>1</td><td>1</td><td>0</td><td>1</td><td>1</td><td>0</td><td>0</td>" in table(
        contents.local
    )
    assert [list(trace.y) for trace in figure(contents.local).data] == [[0.5, None, None], [1, 0.5, 0]]
    assert section(review(write(tmp_path / "other.json", [record(1)])).local) == ()
