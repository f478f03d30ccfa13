"""Goals, from records with figures that can be checked by hand."""

from pathlib import Path
from typing import Any

import pytest

from experiments import goals
from experiments.continual.results import COLUMNS
from experiments.filing import Record, save


def ran(stream: str, method: str, average: float, learned: float = 0.9, **more: Any) -> Record:
    measures = dict.fromkeys(COLUMNS, 0.5) | {"average": average, "just_learned": learned}
    record = {"scenario": stream, "method": method, "data": "mnist", "steps": 2000, "lr": 0.001, "seed": 0}
    return record | {"measures": measures, "drift": 0.1, "seconds": 1.0, "events": []} | more


def wrote(method: str, strength: float, reached: float, forgotten: float) -> Record:
    stage = [{"Shakespeare": {"test": a}, "Python": {"test": b}} for a, b in ((2.0, 4.0), (2 + forgotten, reached))]
    settings = {"method": method, "strength": strength, "seed": 0, "lr": 0.001}
    return {"settings": settings, "losses": [*stage, stage[-1]]}


def test_a_goal_says_by_how_much_it_is_missed() -> None:
    (goal,) = goals.accuracies([ran("split-class", "sal", 0.85), ran("split-class", "sal", 0.87)])
    assert goal.cells() == ("split-class, average", "0.219", "≥ 0.880", "0.860 ± 0.010", "2", "missed by 0.0200")
    (goal,) = goals.accuracies([ran("split-class", "sal", 0.88)])
    assert goal.cells()[-1] == "met"


def test_other_data_steps_and_rates_do_not_count() -> None:
    assert not list(goals.accuracies([ran("split-class", "sal", 0.9, steps=500)]))
    assert not list(goals.accuracies([ran("split-class", "sal", 0.9, data="digits")]))
    assert not list(goals.accuracies([ran("split-class", "sal", 0.9, lr=0.01)]))
    assert not list(goals.accuracies([ran("permuted", "sal", 0.9, lr=1e-4)]))
    assert len(list(goals.accuracies([ran("permuted", "sal", 0.9, steps=5000, lr=1e-4)]))) == 1


def test_a_fuzzy_stream_is_held_against_the_sharp_one_and_learning_against_plain_training() -> None:
    found = list(
        goals.accuracies(
            [
                ran("split-domain", "sal", 0.95, learned=0.97),
                ran("split-domain", "plain", 0.6, learned=0.99),
                ran("split-domain-fuzzy", "sal", 0.91, learned=0.98),
                ran("split-domain-fuzzy", "plain", 0.6, learned=0.985),
            ]
        )
    )
    assert {g.what: round(g.missed, 3) for g in found} == {
        "split-domain, average": -0.01,
        "split-domain-fuzzy, average": 0.01,
        "split-domain, when just learned": 0.01,
        "split-domain-fuzzy, when just learned": -0.005,
    }


def test_forgetting_is_read_at_the_same_loss() -> None:
    records = [
        *(wrote("plain", lr, reached, forgotten) for lr, reached, forgotten in [(1e-4, 1.7, 0.4), (1e-3, 1.5, 0.8)]),
        *(wrote("sal", s, reached, forgotten) for s, reached, forgotten in [(3, 1.65, 0.2), (1, 1.55, 0.4)]),
        *(wrote("ewc", s, reached, forgotten) for s, reached, forgotten in [(3, 1.65, 0.3), (1, 1.55, 0.1)]),
        wrote("l2", 1, 1.6, 0.1),
    ]
    multiple, against = goals.losses(records)
    assert multiple.what == "language, forgotten at 1.6, as a multiple of lower rates"
    assert multiple.reached.mean == pytest.approx(0.5)
    assert multiple.cells()[-1] == "met"
    assert against.what == "language, forgotten at 1.6, against ewc"
    assert against.cells()[-1] == "missed by 0.2000"  # of the strengths of EWC, the one that reaches 1.55 is better
    assert not list(goals.losses(records[2:]))


def test_the_block_is_written(tmp_path: Path) -> None:
    save(ran("split-task", "sal", 0.99), tmp_path / "continual" / "one.json")
    page = tmp_path / "page.md"
    folders = ["--continual", str(tmp_path / "continual"), "--language", str(tmp_path / "language")]
    goals.main([*folders, "--table", str(page)])
    assert "| split-task, average | 0.996 | ≥ 0.994 | 0.990 | 1 | missed by 0.0040 |" in page.read_text()
