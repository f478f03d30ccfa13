"""The benchmark of governing runs, counts every turn, and writes its part of a page."""

import json
from pathlib import Path

from benchmarks import governance


def test_it_measures_and_loses_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before <!-- governance --><!-- /governance --> after")
    out = tmp_path / "out.json"
    governance.main(["--turns", "4", "--at-once", "8", "--rounds", "2", "--out", str(out), "--table", str(page)])
    record = json.loads(out.read_text())
    ways = ["two bare calls", "two bare calls, awaited", "invoke", "ainvoke"]
    assert [row["way"] for row in record["rows"]] == ways
    assert all(100 < row["latency"] < 1000 for row in record["rows"])
    assert record["concurrent"]["turns"] == 16
    assert record["concurrent"]["lost"] == 0
    assert "two bare calls" in page.read_text()
    assert page.read_text().startswith("before")


def test_quantiles() -> None:
    assert governance.quantile(list(map(float, range(100))), 0.99) == 99
