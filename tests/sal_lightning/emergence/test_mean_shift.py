import math

import pytest
import torch

from sal_lightning.emergence.mean_shift import DEVIATIONS, MEAN, USUAL, MeanShift, mean_shift


def batch(seed, n=32, d=16, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def after(batches, change=lambda x: x):
    shift = MeanShift()
    for x in batches:
        shift.update(change(x))
    return shift


def test_the_share_is_that_of_the_definition_and_of_noise_one_over_n():
    x, mean = batch(0).double(), batch(1)[0].double()
    moved = (x - mean).mean(0).norm() ** 2 / (x - mean).norm(dim=1).square().mean()
    assert float(mean_shift(x, mean)) == pytest.approx(float(moved))
    for n in (8, 32, 128):
        shares = [float(mean_shift(batch(seed, n), torch.zeros(16))) for seed in range(200)]
        assert sum(shares) / len(shares) == pytest.approx(1 / n, rel=0.1)


def test_novelty_is_measured_against_a_slow_twin():
    """Mean and usual shifts as weighted sums over all past batches."""
    batches = [batch(seed, shift=0.02 * seed) for seed in range(30)]
    shift = after(batches)
    means = [MEAN ** (29 - i) for i in range(30)]
    weights = [USUAL ** (29 - i) for i in range(30)]
    logs, squares = [math.log(1 / 32)], [math.log(1 / 32) ** 2 + 1]
    for i in range(1, 30):
        past = sum(MEAN ** (i - 1 - j) * batches[j].mean(0) for j in range(i)) / sum(MEAN**j for j in range(i))
        logs.append(math.log(float(mean_shift(batches[i], past))))
        squares.append(logs[-1] ** 2)
    average = sum(w * x for w, x in zip(weights, logs, strict=True)) / sum(weights)
    square = sum(w * x for w, x in zip(weights, squares, strict=True)) / sum(weights)
    usual = math.exp(average + DEVIATIONS * math.sqrt(square - average**2))
    new = batch(99, shift=2.0)
    mean = sum(w * x.mean(0) for w, x in zip(means, batches, strict=True)) / sum(means)
    expected = 1 - usual / float(mean_shift(new, mean))
    assert 0.1 < expected < 1
    assert float(shift.measure(new)) == pytest.approx(expected, abs=1e-4)


def test_it_is_new_before_anything_was_seen_and_where_all_states_move_together():
    shift = MeanShift()
    assert shift.measure(batch(0)) == 1
    shift = after(batch(seed) for seed in range(100))
    usual = [float(shift.measure(batch(seed))) for seed in range(200, 1200)]
    assert sum(new >= 0.4 for new in usual) <= 1
    assert shift.measure(batch(101, shift=1.0)) > 0.8
    for seed in range(300, 400):
        shift.update(batch(seed, shift=1.0))
    assert shift.measure(batch(400, shift=1.0)) < 0.1


def test_it_does_not_depend_on_scale_or_rotation():
    rotation = torch.linalg.qr(batch(5, 16))[0]
    values = []
    for change in (lambda x: x, lambda x: 1e3 * x, lambda x: 1e-3 * x, lambda x: x @ rotation):
        shift = after((batch(seed) for seed in range(20)), change)
        values.append(shift.measure(change(batch(50, shift=0.5))))
    assert 0 < values[0] < 1
    torch.testing.assert_close(torch.stack(values), values[0].expand(4), atol=1e-4, rtol=1e-3)


def test_a_repeated_pattern_and_zeros_are_not_new():
    pattern = batch(3)[:1].expand(8, -1)
    shift = after([pattern, pattern])
    assert shift.measure(pattern) == 0
    assert after([torch.zeros(4, 3)]).measure(torch.zeros(4, 3)) == 0


def test_a_batch_that_stands_for_steps_counts_as_often():
    often, once = MeanShift(), MeanShift()
    often.update(batch(0))
    once.update(batch(0))
    for _ in range(8):
        often.update(batch(1))
    once.update(batch(1), steps=8)
    torch.testing.assert_close(often.mean, once.mean)
    torch.testing.assert_close(often.weight, once.weight)


def test_a_loaded_state_measures_the_same_novelty():
    one, other = after(batch(seed) for seed in range(5)), MeanShift()
    other.load_state_dict(one.state_dict(), torch.device("cpu"))
    assert other.measure(batch(9, shift=1.0)) == one.measure(batch(9, shift=1.0))
    other.load_state_dict(MeanShift().state_dict(), torch.device("cpu"))
    assert other.measure(batch(9)) == 1
