"""The whole of ``python -m benchmarks.growth``, briefly."""

import json
from pathlib import Path

from benchmarks.growth import HEADINGS, Cell, cells, cheap, main

SMALL = ["--widths", "24", "32", "--batches", "16", "--ranks", "4", "8", "--rounds", "1", "--steps", "1"]
ROW = {
    **{"width": 64, "batch": 16, "rank": 4, "plain_ms": 1.0, "listen_ms": 0.1, "analyze_ms": 0.1, "protect_ms": 0.1},
    **{"restore_ms": 0.1, "operations": 65536, "predicted": 1.33},
}


def test_a_run_is_filed_and_fills_its_part_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- cost -->kept<!-- /cost -->\n")
    main([*SMALL, "--out", str(tmp_path / "out"), "--table", str(page)])
    record = json.loads((tmp_path / "out" / "growth-cpu-threads1.json").read_text())
    assert record["command"].startswith("python -m benchmarks.growth --widths 24 32 --batches 16 --ranks 4 8")
    assert {"seed", "commit", "hardware", "versions"} <= set(record)
    assert [(r["width"], r["rank"]) for r in record["rows"]] == [(24, 4), (24, 8), (32, 4), (32, 8)]
    assert all(r["ratio"]["median"] > 0 and r["analyze_ms"] > 0 and r["protect_ms"] > 0 for r in record["rows"])
    text = page.read_text()
    assert text.startswith("# Page\n\n<!-- cost -->kept<!-- /cost -->\n\n<!-- growth -->\n\n## How the cost grows")
    assert f"| {' | '.join(HEADINGS)} |" in text


def test_what_is_not_cheap_shows() -> None:
    rows = [ROW | {"width": w, "ratio": {"median": r, "least": r, "most": r}} for w, r in ((32, 1.2), (64, 1.1))]
    assert ["**1.20**" in cells(row) for row in rows] == [True, False]
    assert "| 4 | 64 |" in cheap(rows)


def test_operations() -> None:
    cell = Cell(width=100, batch=128, rank=96)
    assert cell.operations() == 4 * 100 * 100 * (32 + 6)
    assert cell.predicted() == 1 + 4 * (32 + 6) / (6 * 128)
