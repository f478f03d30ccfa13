"""The plots are plotly's, hold the log's figures, and no name in them is markup."""

import json
from pathlib import Path
from typing import Any

import pytest

from safi_agent.report.figures import MOST_BINS, MOST_KEYS, THRESHOLD, drifts, ledger, scores, shown_keys
from safi_agent.report.review import Review, review
from sal_page.themes import THEMES
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


def test_turns_are_drawn_over_time_where_all_times_are_known_and_differ(tmp_path: Path) -> None:
    times = ["2026-03-01T08:00:00Z", "2026-03-01T10:00:00+01:00", "2026-03-02T08:00:00Z"]
    made = [record(i, timestamp=time, **LOW) for i, time in enumerate(times, 1)]
    drawn = scores(reviewed(tmp_path, made))
    line, marks = drawn.data
    assert line.x == marks.x == ("2026-03-01 08:00:00", "2026-03-01 09:00:00", "2026-03-02 08:00:00")
    assert drawn.layout.xaxis.type == "date"
    assert [row[1] for row in marks.customdata] == [1, 2, 3]
    made[1]["timestamp"] = "soon"
    drawn = scores(reviewed(tmp_path, made))
    assert drawn.data[0].x == (1, 2, 3)
    assert drawn.layout.xaxis.dtick == 1  # whole turns
    assert ledger(reviewed(tmp_path, made)).figure.layout.xaxis.ticktext == ("1", "2", "3")


def test_the_threshold_stands_out_on_both_cards() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in THEMES.values():  # WCAG 2.2, 1.4.11: at least 3 to 1
        dark, light = sorted((luminance(theme.card), luminance(THRESHOLD)))
        assert (light + 0.05) / (dark + 0.05) >= 3


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
