"""Agreement against published figures, slow twins and cases computed by hand."""

import random
from collections.abc import Sequence
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safi_agent.calibration.agreement import (
    Confusion,
    Interval,
    Level,
    bootstrap,
    choose_threshold,
    krippendorff_alpha,
)

# Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, section D: 12 units by 4 observers, 0 is missing.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3),
    (0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0),
)
PUBLISHED = [tuple(rating for rating in unit if rating) for unit in zip(*OBSERVERS, strict=True)]
RATINGS = st.lists(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), max_size=4), max_size=12)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_that_of_the_published_example(level: Level, alpha: float) -> None:
    assert krippendorff_alpha(PUBLISHED, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_is_that_of_the_published_binary_example() -> None:
    """Section A of the same paper: two observers, ten binary units."""
    one, other = (0, 1, 0, 0, 0, 0, 0, 0, 1, 0), (1, 1, 1, 0, 0, 1, 0, 0, 0, 0)
    assert krippendorff_alpha(list(zip(one, other, strict=True)), "nominal") == pytest.approx(0.095, abs=5e-4)


def twin(units: Sequence[Sequence[float]], level: Level) -> float | None:
    """By definition: mean difference within units over mean difference of all ratings, with sums over categories."""
    rated = [unit for unit in units if len(unit) > 1]
    flat = [rating for unit in rated for rating in unit]

    def difference(c: float, k: float) -> float:
        if c == k:
            return 0
        if level == "nominal":
            return 1
        low, high = sorted((c, k))
        between = sum(flat.count(g) for g in set(flat) if low <= g <= high)
        return float((between - (flat.count(c) + flat.count(k)) / 2) ** 2)

    observed = sum(difference(c, k) / (len(unit) - 1) for unit in rated for c, k in permutations(unit, 2))
    expected = sum(difference(c, k) for c, k in permutations(flat, 2))
    return 1 - (len(flat) - 1) * observed / expected if expected else None


@given(RATINGS, st.sampled_from(["nominal", "ordinal"]))
@settings(max_examples=100, deadline=None)
def test_alpha_is_that_of_the_definition(units: list[list[float]], level: Level) -> None:
    alpha, expected = krippendorff_alpha(units, level), twin(units, level)
    assert alpha == (None if expected is None else pytest.approx(expected))


def test_ratios_are_those_of_the_counts_and_none_where_undefined() -> None:
    pairs = [(True, True)] * 3 + [(True, False)] * 1 + [(False, True)] * 2 + [(False, False)] * 4
    counts = Confusion.of(pairs)
    assert counts == (3, 2, 1, 4)
    assert (counts.accuracy, counts.precision, counts.recall) == (0.7, 0.6, 0.75)
    assert counts.specificity == pytest.approx(2 / 3)
    assert counts.f1 == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    none = Confusion.of([])
    assert (none.accuracy, none.precision, none.recall, none.specificity, none.f1) == (None,) * 5


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Of 100 samples of 80 answers that are right with probability 0.7."""
    draw = random.Random(0)
    covered = 0
    for seed in range(100):
        items = [(i, draw.random() < 0.7) for i in range(80)]
        interval = bootstrap(items, lambda item: item[0], _mean, 200, seed)["mean"]
        covered += interval.low <= 0.7 <= interval.high
    assert 88 <= covered <= 100


def _mean(items: Sequence[tuple[int, bool]]) -> dict[str, float | None]:
    return {"mean": sum(right for _, right in items) / len(items), "undefined": None}


def test_answers_of_one_group_are_drawn_together() -> None:
    """With one group nothing varies; with the same answers apart something does."""
    items = [(i, i % 2 == 0) for i in range(20)]
    assert bootstrap(items, lambda item: 0, _mean, 50, 0) == {"mean": Interval(0.5, 0.5)}
    apart = bootstrap(items, lambda item: item[0], _mean, 50, 0)["mean"]
    assert apart.low < 0.5 < apart.high
    assert apart == bootstrap(items, lambda item: item[0], _mean, 50, 0)["mean"]
    assert bootstrap([], lambda item: 0, _mean, 50, 0) == bootstrap(items, lambda item: 0, _mean, 0, 0) == {}


@given(st.lists(st.tuples(st.booleans(), st.integers(-4, 4).map(lambda n: n / 4)), max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_other_threshold_is_better_and_none_as_good_is_nearer_to_0(pairs: list[tuple[bool, float]]) -> None:
    def gain(threshold: float) -> float:
        counts = Confusion.of((broken, signal < threshold) for broken, signal in pairs)
        return (counts.recall or 0) + (counts.specificity or 0)

    chosen = choose_threshold(pairs)
    if len({broken for broken, _ in pairs}) < 2:
        assert chosen == 0
        return
    signals = sorted({signal for _, signal in pairs})
    others = [-1.0, 0.0, *((low + high) / 2 for low, high in pairwise(signals))]
    assert gain(chosen) == pytest.approx(max(map(gain, others)))
    assert all(abs(other) >= abs(chosen) for other in others if gain(other) > gain(chosen) - 1e-9)


def test_a_judge_without_information_keeps_the_threshold_at_0() -> None:
    assert choose_threshold([(True, 0.5), (False, 0.5), (True, 0.5)]) == 0
