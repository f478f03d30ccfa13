"""The figures about the published rule, in small."""

import math
from pathlib import Path

import pytest

from experiments.continual.data import load
from experiments.continual.streams import make
from experiments.published import HEADINGS, RULES, Watched, cells, main, mean


def test_the_page_is_filled_with_a_row_for_each_optimizer_and_rule(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("By hand.\n\n<!-- published -->old<!-- /published -->\n\nBy hand too.\n")
    main(["--steps", "3", "--seeds", "0", "--table", str(page)])
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| SGD", "| Adam"))]
    assert [tuple(row.split(" | ")[:2]) for row in rows] == [
        (f"| {optimizer}", rule) for optimizer in ("SGD 0.1", "Adam 0.001") for rule in ("plain", "published", "here")
    ]
    assert all(len(row.split("|")) == len(HEADINGS) + 2 for row in rows)
    assert "`python -m experiments.published --steps 3 --seeds 0`" in text
    assert text.startswith("By hand.")
    assert text.endswith("By hand too.\n")
    assert "old" not in text


@pytest.mark.slow
def test_under_sgd_it_freezes_under_adam_it_moves_on_and_under_both_opens_at_a_change() -> None:
    stream, steps = make("split-domain", load("digits"), 0), 45
    found = {
        (optimizer, rule): Watched(stream, optimizer, rule, 0).run(steps, 0)
        for optimizer in ("SGD 0.1", "Adam 0.001")
        for rule in RULES[:2]
    }
    frozen, plain = found["SGD 0.1", "published"], found["SGD 0.1", "plain"]
    assert frozen.held > 0.9
    assert frozen.by < steps
    assert frozen.step < 0.1 * plain.step
    assert frozen.learned < 0.6 < 0.9 < plain.learned
    undone, plain = found["Adam 0.001", "published"], found["Adam 0.001", "plain"]
    assert undone.held > 0.9
    assert undone.step > 0.7 * plain.step
    assert undone.learned > 0.9
    assert undone.average < plain.average + 0.1
    assert undone.after > 2 * undone.before


def test_what_no_run_has_is_left_empty() -> None:
    stream = make("split-domain", load("digits"), 0)
    found = Watched(stream, "SGD 0.1", "plain", 0).run(2, 0)
    assert math.isnan(found.held)
    assert math.isnan(found.before)
    row = cells("SGD 0.1", "plain", [found], [found])
    assert row[5] == row[-1] == ""
    assert row[6] == "1.000"
    assert math.isnan(mean([]))
