"""The page's tables."""

from typing import Any

import pytest

from experiments.language.methods import METHODS
from experiments.language.results import cells, headings, markdown, matched
from experiments.language.settings import FULL, QUICK, Scale
from tests.experiments.language.test_curves import record


def test_a_row_is_the_mean_over_the_seeds_of_one_strength() -> None:
    records = [record("l2", 0.1, seed, reached=2.0, after=after) | MADE for seed, after in enumerate((1.8, 2.0))]
    (row,) = cells(records)
    assert len(row) == len(headings("a", "b"))
    assert row[:5] == ("l2", "0.1", "2", "0.400 ± 0.100", "2.000 ± 0.000")
    assert row[5:] == ("1.600 ± 0.000", "3.000 ± 0.000", "2.300 ± 0.000", "12 k", "6", "1")


def test_methods_are_read_at_the_same_loss_and_blank_where_they_do_not_come() -> None:
    plain = [record("plain", lr, 0, reached, after, lr) for lr, reached, after in [(1e-3, 2.0, 2.3), (1e-4, 2.2, 1.9)]]
    sal = [record("sal", strength, 0, reached, 1.7) for strength, reached in [(1, 1.9), (3, 2.1)]]
    assert matched([*plain, *sal]).splitlines()[2:] == [
        "| plain | 0.800 (× 1.00) | 0.600 (× 1.00) | 0.400 (× 1.00) |",
        "| sal | 0.200 (× 0.25) | 0.200 (× 0.33) |  |",
    ]


def test_without_a_baseline_nothing_is_matched() -> None:
    assert matched([record("sal", 1, 0, 2.0, 1.7)]) == ""


@pytest.mark.parametrize(("scale", "kind"), [(QUICK, "## A small language model: "), (FULL, "## A language model: ")])
def test_the_page_says_how_large_the_network_was(scale: Scale, kind: str) -> None:
    text = markdown([sized(record("plain", 1e-3, 0, 2.0, 1.8) | MADE, scale)])
    assert f"{scale.layers} layers of width {scale.width}, " in text
    assert text.startswith(kind)


def sized(record: dict[str, Any], scale: Scale = FULL) -> dict[str, Any]:
    return record | {"settings": record["settings"] | {"scale": list(scale)}}


def test_the_page_says_how_to_get_its_numbers_again() -> None:
    text = markdown([sized(record("plain", 1e-3, seed, 2.0, 1.8) | MADE) for seed in (0, 4)], "language.png")
    assert "--methods plain --seeds 0 4`" in text
    assert "](language.png)" in text
    assert "Commit abcdefab; chip; torch 2; a md5 0, b md5 1." in text


def test_the_page_names_the_methods_that_were_not_run() -> None:
    lines = markdown([sized(record(m, 1e-3, 0, 2.0, 1.8) | MADE) for m in ("plain", "sal")]).splitlines()
    missing = [line for line in lines if "| not run |" in line]
    assert [line.split(" | ")[0] for line in missing] == [f"| {m}" for m in METHODS if m not in ("plain", "sal")]
    assert {line.count("|") for line in missing} == {len(headings("a", "b")) + 1}


MADE = {
    "command": "python",
    "commit": "abcdefabcdef",
    "hardware": {"cpu": "chip"},
    "versions": {"torch": "2"},
    "data": {"a": "0", "b": "1"},
    "seconds": [1.0, 2.0, 3.0],
    "learning": 12_000,
    "events": [7],
}
