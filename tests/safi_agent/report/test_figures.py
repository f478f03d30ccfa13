"""The plots are plotly's, hold the log's figures, and no name in them is markup."""

import json
from pathlib import Path
from typing import Any

import pytest

from safi_agent.report.figures import MOST_BINS, MOST_KEYS, drifts, ledger, scores, shown_keys
from safi_agent.report.review import Review, review
from tests.safi_agent.report.records import ADRIFT, LOW, REFUSED, record, various, write


def reviewed(tmp_path: Path, records: list[Any]) -> Review:
    return review(write(tmp_path / "log.json", records))


@pytest.mark.parametrize("records", [various(300), [record(1)], [record(1, **REFUSED)]])
def test_plotly_knows_every_word_of_them(tmp_path: Path, records: list[Any]) -> None:
    found = reviewed(tmp_path, records)
    scores(found), drifts(found)
    mapped = ledger(found)
    for size in (mapped.narrow, mapped.wide):
        mapped.figure.update_layout({key.replace(".", "_"): value for key, value in size.items()})


def test_lines_are_means_and_marks_are_turns_beyond_the_threshold(tmp_path: Path) -> None:
    made = [record(1), record(2, **LOW), record(3, **ADRIFT), record(4, **REFUSED)]
    found = reviewed(tmp_path, made)
    line, marks = scores(found).data
    assert (line.x, line.y) == ((1, 2, 3, 4), (7, 3, 7, None))
    assert (marks.x, marks.y) == ((2,), (3,))
    line, marks = drifts(found).data
    assert line.y == (0.1, 0.1, 0.7, None)
    assert (marks.x, marks.y) == ((3,), (0.7,))


def test_a_long_log_is_binned_and_many_keys_are_not_all_drawn(tmp_path: Path) -> None:
    made = [record(i, memoryKey=f"key {i % 12 if i % 5 else 3}") for i in range(1, 1000)]
    found = reviewed(tmp_path, made)
    assert shown_keys(found)[0] == "key 3"
    traces = scores(found).data
    assert len(traces) == 2 * MOST_KEYS
    assert max(len(trace.x) for trace in traces) == MOST_BINS
    assert len(ledger(found).figure.data[0].z[0]) == MOST_BINS


def test_the_ledger_is_a_mean_for_each_value_and_stretch(tmp_path: Path) -> None:
    rows = [[{"value": "Truth", "score": s, "confidence": 1, "reason": ""}] for s in (-1, 0, 0.5, 1)]
    made = [record(i + 1, conscienceLedger=rows[i % 4]) for i in range(240)]
    (trace,) = ledger(reviewed(tmp_path, made)).figure.data
    assert [list(row) for row in trace.z] == [[0.125] * 60]
    assert list(trace.customdata[0][1]) == ["Truth", "5\u20138", 4, -1, 1]


def test_names_are_escaped_and_numbers_among_them_stay_names(tmp_path: Path) -> None:
    name = '<a href="https://x.example">2026-01-01</a>'
    row = {"value": name, "score": 1, "confidence": 1, "reason": ""}
    found = reviewed(tmp_path, [record(1, memoryKey=name, conscienceLedger=[row])])
    mapped = ledger(found)
    for made in (scores(found).to_json(), drifts(found).to_json(), mapped.figure.to_json(), json.dumps(mapped[1:])):
        assert "<a" not in made
        assert "\\u003ca" not in made
        assert "&lt;a" in made
