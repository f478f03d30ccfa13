"""The tables of the front page."""

from pathlib import Path

import pytest

from experiments.continual.overview import SPLITS, overview
from experiments.continual.picture import draw
from experiments.continual.results import COLUMNS
from experiments.filing import Record


def record(method: str, stream: str, average: float) -> Record:
    measures = dict.fromkeys(COLUMNS, 0.5) | {"average": average}
    more = {"data": "mnist", "steps": 100, "seconds": 1.0, "events": [103, 7], "drift": 0.1, "R": [[1.0]] * 3}
    return {"method": method, "scenario": stream, "measures": measures} | more


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_tables_have_no_blank_cell() -> None:
    records = [record(m, s, 0.7) for m in ("plain", "sal", "ridge") for s in SPLITS]
    records += [record("sal", "rotated", 0.9), record("plain", "rotated", 0.8)]
    records += [
        record("ewc", "split-task", 0.9),
        record("sal", "permuted", 0.9),
        record("sal:recall=0", "rotated", 0.1),
    ]
    first, second = map(table, overview(records).split("\n\n"))
    assert first[0] == ["method", "is told, or keeps", "features", *SPLITS]
    assert [row[:3] for row in first[2:]] == [
        ["plain", "nothing", "trained"],
        ["sal", "nothing", "trained"],
        ["ridge", "nothing", "random"],
    ]
    assert [row[0] for row in second[2:]] == [*SPLITS, "rotated"]
    assert second[-1][1] == "0.800 / 0.900"
    assert second[-1][-1] == "1 of 2, 1 false"
    assert all(cell for row in (*first, *second) for cell in row)


def test_seeds_have_a_mean_and_an_error() -> None:
    both = [record("plain", s, average) for s in SPLITS for average in (0.5, 1.0)]
    assert table(overview(both))[2][3:] == ["0.750 ± 0.250"] * 3


def test_the_picture_shows_the_methods_of_the_table_and_is_the_same_each_time(tmp_path: Path) -> None:
    records = [record(m, s, 0.7) for m in ("plain", "sal", "ridge", "replay") for s in SPLITS]
    for name in ("a.svg", "b.svg"):
        draw([*records, record("ewc", "split-task", 0.9)], tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert all(f">{name}</text>" in text for name in ("plain", "sal", "ridge", "replay", *SPLITS))
    assert ">ewc</text>" not in text
    assert text == (tmp_path / "b.svg").read_text()


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none"):
        draw([record("plain", "split-task", 0.7)], tmp_path / "a.svg")
