"""Classifiers in closed form, against those of all samples at once."""

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.continual.batches import Batch
from experiments.continual.closed_form import BLOCK, LinearDiscriminant, Ridge, RidgeRegression, StreamingLDA
from experiments.continual.protocol import run

CLASSES = 4


def samples(n: int = 90, d: int = 6) -> tuple[Tensor, Tensor]:
    """Correlated inputs, the classes one after another as in a stream."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) * CLASSES // n
    return torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g) + y[:, None], y


def test_running_means_and_covariance_are_those_of_numpy() -> None:
    x, y = samples()
    made = LinearDiscriminant(6, CLASSES)
    for rows in torch.arange(90).split(7):
        made.update(x[rows], y[rows])
    inputs, labels = x.double().numpy(), y.numpy()
    means = np.stack([inputs[labels == c].mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(made.means.numpy(), means, rtol=1e-9)
    within = np.cov(inputs - means[labels], rowvar=False, bias=True)
    np.testing.assert_allclose((made.scatter / made.counts.sum()).numpy(), within, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_ridge_regression_is_least_squares_of_all_samples_at_once(penalty: float) -> None:
    x, y = samples()
    targets = torch.nn.functional.one_hot(y, CLASSES).double()
    made = RidgeRegression(6, CLASSES, penalty)
    for rows in torch.arange(90).split(7):
        made.update(x[rows].double(), targets[rows])
    # The squared penalty is the squared error of further rows, whose targets are zero.
    size = np.sqrt(penalty * x.double().square().sum().item() / 6)
    inputs = np.concatenate([x.double().numpy(), size * np.eye(6)])
    labels = np.concatenate([targets.numpy(), np.zeros((6, CLASSES))])
    expected, *_ = np.linalg.lstsq(inputs, labels, rcond=None)
    np.testing.assert_allclose(made.solve().numpy(), expected.T, rtol=1e-6, atol=1e-8)


def test_ridge_on_random_features_is_least_squares_on_them() -> None:
    x, y = samples()
    torch.manual_seed(0)
    made = Ridge(6, CLASSES, width=12, penalty=1e-9)
    for rows in torch.arange(90).split(8):
        made.training_step(Batch(x[rows], y[rows], slice(0, CLASSES)), 0)
    features = np.concatenate([np.maximum(x.numpy() @ made.random.numpy().T, 0), np.ones((90, 1))], 1).astype(float)
    expected, *_ = np.linalg.lstsq(features, np.eye(CLASSES)[y.numpy()], rcond=None)
    np.testing.assert_allclose(made(x).numpy(), features @ expected, atol=2e-3)


def test_waiting_batches_count_as_soon_as_outputs_are_asked_for() -> None:
    x, y = samples()
    one, all_at_once = StreamingLDA(6, CLASSES), StreamingLDA(6, CLASSES)
    for i, (rows, labels) in enumerate(zip(x.split(10), y.split(10), strict=True)):
        one.training_step(Batch(rows, labels, slice(0, CLASSES)), i)
        one(x[:2])
    all_at_once.training_step(Batch(x, y, slice(0, CLASSES)), 0)
    torch.testing.assert_close(one(x), all_at_once(x), rtol=1e-4, atol=1e-4)


def test_no_more_than_a_block_waits() -> None:
    made = StreamingLDA(2, CLASSES)
    batch = Batch(torch.randn(BLOCK // 2, 2), torch.arange(BLOCK // 2) % CLASSES, slice(0, CLASSES))
    made.training_step(batch, 0)
    assert len(made.waiting) == 1
    made.training_step(batch, 1)
    assert not made.waiting


def test_a_class_without_samples_is_never_answered_and_nothing_is_known_at_first() -> None:
    x, y = samples()
    made = StreamingLDA(6, CLASSES + 1)
    assert made(x).argmax(1).unique().numel() == 1
    made.training_step(Batch(x, y, slice(0, CLASSES)), 0)
    assert CLASSES not in made(x).argmax(1)
    assert torch.isfinite(Ridge(6, CLASSES, width=3)(x)).all()


@pytest.mark.parametrize("method", ["slda", "ridge:width=200"])
def test_it_learns_a_stream_without_forgetting_and_its_features_do_not_move(method: str) -> None:
    result = run("split-class", method, seed=0, steps=12, data="digits", every=12)
    assert (result.measures["average"] or 0) > 0.9
    assert result.drift == 0
