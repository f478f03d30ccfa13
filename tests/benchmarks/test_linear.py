"""The benchmark of time by length tells what is linear from what is not."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import linear


def steps(most: int):
    """A function that takes time quadratic in the length of its input."""
    return lambda text: [sum(range(len(text))) for _ in range(min(len(text), most) // 10)]


def test_what_is_quadratic_is_found_and_not_run_on_longer_inputs() -> None:
    row = linear.measure("it", steps(10**9), "dashes", [1_000, 10_000, 1_000_000], 2)
    assert row["growth"] > 50
    assert len(row["seconds"]) == 2
    assert [*linear.faults([row])] == [f"it: {row['growth']:.0f} times as long for ten times of dashes."]


def test_what_is_linear_is_not() -> None:
    row = linear.measure("it", lambda text: sum(map(ord, text)), "dashes", [10_000, 100_000], 5)
    assert [*linear.faults([row])] == []
    assert len(row["seconds"]) == 2


@pytest.mark.parametrize("kind", linear.UNITS)
def test_inputs_have_the_length_that_is_asked_for(kind: str) -> None:
    assert [len(linear.text(kind, size)) for size in (1, 10, 1_000)] == [1, 10, 1_000]


@pytest.mark.slow
def test_the_table_is_written_from_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"good": len, "bad": steps(10**9)}
    monkeypatch.setattr(linear, "works", lambda: made)
    monkeypatch.setattr(linear, "UNITS", {"dashes": ("", "-")})
    page, out = tmp_path / "safi.md", tmp_path / "linear.json"
    page.write_text("before\n<!-- linear -->old<!-- /linear -->\nafter\n")
    with pytest.raises(SystemExit, match=r"bad: .* times as long"):
        linear.main(["--sizes", "2000", "20000", "--table", str(page), "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["command"] == "python -m benchmarks.linear --sizes 2000 20000"
    assert [row["what"] for row in record["rows"]] == ["good", "bad"]
    assert re.search(
        r"before\n<!-- linear -->\n\n\| what .*\| good \| dashes \| .*<!-- /linear -->\nafter",
        page.read_text(),
        re.DOTALL,
    )


def test_the_gate_is_timed_whole() -> None:
    assert {"fence", "plain text", "the judge's reply", "split", "rules, professional", "rules on a call, civic"} <= {
        *linear.works()
    }
    assert len(linear.UNITS) >= 8
