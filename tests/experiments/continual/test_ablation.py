"""Variants beside each other: what the table shows, and that the command writes it."""

from pathlib import Path
from typing import Any

import pytest

from experiments.continual import __main__ as command_line
from experiments.continual.ablation import markdown, table
from experiments.continual.evaluation import MEASURES


def record(stream: str, method: str, seed: int, average: float, learned: float) -> dict[str, Any]:
    return {
        "scenario": stream,
        "method": method,
        "seed": seed,
        "data": "mnist-validation",
        "steps": 500,
        "lr": 1e-3,
        "measures": dict.fromkeys(MEASURES) | {"average": average, "just_learned": learned},
        "drift": None,
        "seconds": 1.0,
        "events": [],
        "commit": "0123456789",
        "hardware": {"cpu": "chip"},
        "versions": {"torch": "2"},
    }


RECORDS = [
    record("split-class", "sal", 100, 0.9, 0.96),
    record("split-class", "sal:strength=8", 100, 0.91, 0.95),
    record("split-domain", "sal", 100, 0.93, 0.98),
    record("split-domain", "sal", 101, 0.95, 0.98),
    record("split-domain", "plain", 100, 0.6, 0.99),
]


def test_a_row_holds_both_measures_of_every_stream_and_is_blank_where_nothing_was_run() -> None:
    headings, rows = table({"split-domain": RECORDS[2:], "split-class": RECORDS[:2]})
    assert headings == (
        "method",
        "split-domain, average",
        "split-domain, learned",
        "split-class, average",
        "split-class, learned",
    )
    assert rows == [
        ("plain", "0.600", "0.990", "", ""),
        ("sal", "0.940 ± 0.010", "0.980 ± 0.000", "0.900", "0.960"),
        ("sal:strength=8", "", "", "0.910", "0.950"),
    ]


def test_each_table_says_how_to_get_it_again_and_other_steps_have_their_own() -> None:
    page = markdown([*RECORDS, record("split-class", "sal", 100, 0.8, 0.9) | {"steps": 2000}])
    few, many = page.split("### ")[1:]
    assert few.startswith("mnist-validation, 500 steps a task")
    assert many.startswith("mnist-validation, 2000 steps a task")
    assert "| method | split-domain, average |" in few
    assert "--stream split-domain --data mnist-validation --steps 500" in few
    assert "--methods sal sal:strength=8 --seeds 100`" in few
    assert "Commit 01234567; chip, " in few
    assert "split-domain" not in many


@pytest.mark.slow
def test_the_command_fills_the_block_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- ablation --><!-- /ablation -->\n\nafter\n")
    command_line.main(
        f"--data digits --steps 2 --methods plain sal:strength=8 --out {tmp_path} --ablation {page}".split()
    )
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| sal:strength=8 | 0." in text
