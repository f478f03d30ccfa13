"""What curves say, against numbers worked out by hand."""

import math
from typing import Any

import pytest

from experiments.language.curves import Point, curves, forgotten_at, grid_of, name, point, read_all, reading, save
from experiments.language.protocol import run
from experiments.language.settings import Settings
from tests.experiments.language.common import DOMAINS, SCALE

CURVE = [Point(1.8, 0.6), Point(2.0, 0.4), Point(2.4, 0.3)]


def record(method: str, strength: float, seed: int, reached: float, after: float, lr: float = 1e-3) -> dict[str, Any]:
    def losses(first: float, second: float) -> dict[str, Any]:
        return {"a": {"validation": 9.0, "test": first}, "b": {"validation": 9.0, "test": second}}

    settings = {"method": method, "strength": strength, "seed": seed, "lr": lr}
    return {"settings": settings, "losses": [losses(1.5, 4.0), losses(after, reached), losses(1.6, 3.0)]}


@pytest.mark.parametrize(
    ("reached", "forgotten"), [(1.8, 0.6), (1.85, 0.55), (2.0, 0.4), (2.1, 0.375), (2.3, 0.325), (2.4, 0.3)]
)
def test_between_two_points_lies_a_straight_line(reached: float, forgotten: float) -> None:
    assert forgotten_at(CURVE, reached) == pytest.approx(forgotten)


@pytest.mark.parametrize("reached", [1.79, 2.41])
def test_nothing_is_said_beyond_the_ends(reached: float) -> None:
    assert math.isnan(forgotten_at(CURVE, reached))
    assert math.isnan(forgotten_at(CURVE[:1], 1.8))


def test_two_points_at_one_place_count_half_each() -> None:
    assert forgotten_at([Point(2.0, 0.2), Point(2.0, 0.4)], 2.0) == pytest.approx(0.3)


def test_the_grid_is_what_every_seed_of_the_baseline_reaches() -> None:
    assert grid_of({0: CURVE, 1: [Point(1.95, 0.5), Point(2.25, 0.2)]}) == [2.0, 2.1, 2.2]


def test_a_record_is_a_point_of_its_curve() -> None:
    assert point(record("l2", 0.1, 0, reached=2.0, after=1.9)) == pytest.approx((2.0, 0.4))


def test_curves_are_ordered_by_what_was_reached_and_another_learning_rate_is_another() -> None:
    records = [record("sal", 3, 0, 2.2, 1.6), record("sal", 1, 0, 2.0, 1.8), record("sal", 1, 0, 1.9, 1.9, lr=2e-3)]
    found = curves(records)
    assert list(found) == ["sal", "sal at 0.002"]
    assert [p.reached for p in found["sal"][0]] == [2.0, 2.2]


def test_the_baseline_is_one_curve_over_all_its_learning_rates() -> None:
    assert {name(record("plain", lr, 0, 2.0, 1.8, lr=lr)) for lr in (1e-3, 1e-4)} == {"plain"}


def test_a_reading_is_the_mean_over_seeds_of_what_is_paired() -> None:
    baseline = {0: [Point(1.0, 0.8), Point(2.0, 0.4)], 1: [Point(1.0, 1.0), Point(2.0, 0.6)]}
    mine = {0: [Point(1.0, 0.4), Point(2.0, 0.2)], 1: [Point(1.0, 0.25), Point(2.0, 0.15)]}
    found = reading(mine, baseline, 1.5)
    assert found is not None
    assert found.forgotten.mean == pytest.approx((0.3 + 0.2) / 2)
    assert found.ratio.mean == pytest.approx((0.5 + 0.25) / 2)
    assert found.ratio.error == pytest.approx(0.125)


def test_where_one_seed_does_not_come_there_is_no_reading() -> None:
    assert reading({0: CURVE, 1: CURVE[1:]}, {0: CURVE, 1: CURVE}, 1.9) is None
    assert reading({2: CURVE}, {0: CURVE}, 1.9) is None


def test_records_come_back_in_order_and_only_of_their_scale(tmp_path: Any) -> None:
    for strength in (1e-2, 1e-3):
        settings = Settings("plain", strength, 0, strength, SCALE, "letters")
        save(run(settings, DOMAINS, tmp_path / "cache"), tmp_path)
    assert [r["settings"]["strength"] for r in read_all(tmp_path, SCALE, "letters")] == [1e-3, 1e-2]
    assert read_all(tmp_path, SCALE._replace(width=8), "letters") == []
    assert read_all(tmp_path, SCALE, "other") == []
