"""Temperatures and confidences, against slow twins and cases by hand."""

import math
import random

import pytest
import torch

from safi_agent.local.confidence import (
    broken_probability,
    calibration_error,
    choose_confidence,
    confidence,
    fit_temperature,
    lower_limit,
)


def test_the_temperature_is_that_by_which_logits_were_exaggerated() -> None:
    draws = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 4, generator=draws)
    broken = torch.rand(4000, generator=draws) < broken_probability(honest)
    for factor in (0.25, 1.0, 4.0):
        assert fit_temperature(factor * honest, broken, torch.ones(4000)) == pytest.approx(factor, rel=0.12)


def test_weights_count_as_repetitions() -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    broken = torch.arange(20) % 3 == 0
    weights = torch.ones(20)
    weights[:5] = 3
    repeated = torch.cat([logits, logits[:5], logits[:5]]), torch.cat([broken, broken[:5], broken[:5]])
    assert fit_temperature(logits, broken, weights) == fit_temperature(*repeated, torch.ones(30))


def test_the_chosen_confidence_is_the_lowest_that_reaches_the_target() -> None:
    draw = random.Random(0)
    for _ in range(50):
        pairs = [(round(draw.uniform(0.5, 1), 1), draw.random() < 0.8) for _ in range(12)]
        target = draw.choice([0.5, 0.6, 0.7, 0.8])

        def limit(least: float, pairs: list[tuple[float, bool]] = pairs) -> float:
            kept = [agrees for sure, agrees in pairs if sure >= least]
            return lower_limit(sum(kept), len(kept))

        reached = [sure for sure, _ in pairs if limit(sure) >= target]
        assert choose_confidence(pairs, target) == (min(reached) if reached else None)


@pytest.mark.parametrize(("agreeing", "count"), [(0, 5), (3, 4), (45, 50), (50, 50)])
def test_at_the_lower_limit_the_share_is_one_standard_error_away(agreeing: int, count: int) -> None:
    limit = lower_limit(agreeing, count)
    assert 0 <= limit <= agreeing / count
    assert agreeing / count - limit == pytest.approx(math.sqrt(limit * (1 - limit) / count))


def test_nothing_is_sure_where_nothing_agrees_or_there_is_nothing() -> None:
    assert choose_confidence([(0.9, False)], 0.9) is None
    assert choose_confidence([], 0.9) is None
    assert calibration_error([]) is None


def test_calibration_error_of_two_bins_by_hand() -> None:
    pairs = [(0.55, True), (0.55, False), (0.95, True), (0.95, True)]
    by_hand = (abs(0.55 - 0.5) * 2 + abs(0.95 - 1) * 2) / 4
    assert calibration_error(pairs) == pytest.approx(by_hand)


def test_the_confidence_is_that_of_the_more_probable_side() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    broken = broken_probability(logits)
    assert broken.tolist() == pytest.approx([0.5, 0.25])
    assert confidence(broken).tolist() == pytest.approx([0.5, 0.75])
