"""Streaming linear discriminant analysis, against scikit-learn's and against training on features worked out apart."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from experiments.continual.closed_form import SHRINKAGE, LinearDiscriminant
from experiments.continual.data import load
from experiments.networks import networks, streams
from experiments.networks.objective import Example
from experiments.networks.protocol import Run, run, useful
from experiments.networks.slda import StreamingLDA

CLASSES, FEATURES, EACH = 3, 5, 40


@pytest.fixture
def samples():
    """As many of each class, correlated, class after class."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(FEATURES, FEATURES, generator=generator)
    centres = 2 * torch.randn(CLASSES, FEATURES, generator=generator)
    x = torch.randn(CLASSES * EACH, FEATURES, generator=generator) @ mixing
    y = torch.arange(CLASSES).repeat_interleave(EACH)
    return x + centres[y], y


def learned(x, y, sizes, shrinkage=SHRINKAGE):
    made = LinearDiscriminant(FEATURES, CLASSES, shrinkage)
    for rows, labels in zip(x.split(sizes), y.split(sizes), strict=True):
        made.update(rows, labels)
    return made


@pytest.mark.parametrize("shrinkage", [SHRINKAGE, 0.3])
def test_it_is_the_discriminant_of_scikit_learn(samples, shrinkage):
    """Theirs shrinks to ``v I``, v the mean variance; in units in which v is 1 that is the same."""
    x, y = samples
    within = torch.cat([x[y == label] - x[y == label].mean(0) for label in range(CLASSES)])
    x = x / within.square().mean().sqrt()
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x.double().numpy(), y.numpy())
    weight, bias = learned(x, y, [7, 50, 1, 62], shrinkage).classifier()
    torch.testing.assert_close(weight, torch.as_tensor(theirs.coef_), rtol=1e-5, atol=1e-5)
    prior = torch.tensor(CLASSES).log()  # of equally likely classes
    torch.testing.assert_close(bias, torch.as_tensor(theirs.intercept_) + prior, rtol=1e-5, atol=1e-5)


def test_neither_the_order_of_the_samples_nor_the_size_of_batches_matters(samples):
    x, y = samples
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    one, other = learned(x, y, [len(x)]), learned(x[order], y[order], [1] * len(x))
    torch.testing.assert_close(other.classifier(), one.classifier())


def test_a_class_without_samples_is_never_answered(samples):
    x, y = samples
    weight, bias = learned(x[: 2 * EACH], y[: 2 * EACH], [2 * EACH]).classifier()
    assert (x.double() @ weight.mT + bias).argmax(1).unique().tolist() == [0, 1]


def test_features_are_the_inputs_of_the_last_layer_and_no_weight_before_it_moves():
    torch.manual_seed(0)
    net = networks.make("mlp", 8)
    learner, before = StreamingLDA("mlp", net), [p.clone() for p in net.parameters()]
    x, y = streams.make("split-two", load("digits"), 0, 5, 32).at(0)
    learner.training_step(Example((x,), y), 0)
    learner.score(streams.Batch(x, y))
    torch.testing.assert_close(learner.features(Example((x,), y)), net[:-1](x))
    assert all(torch.equal(a, b) for a, b in zip(before[:-2], net.parameters(), strict=False))
    assert not torch.equal(before[-2], net[-1].weight)
    assert net.training


def test_a_run_learns_new_classes_and_keeps_old_ones():
    found = run(Run("mlp", "split-five", "slda", 0, "digits", 10))
    assert min(found["kept"]) > 0.8
    assert found["events"] == []


def test_a_network_without_a_layer_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"linear layer of 10 outputs, got Conv2d"):
        StreamingLDA("denoiser", nn.Conv2d(1, 1, 3))


def test_it_is_run_once_on_streams_that_bring_new_classes():
    runs = [Run("mobilenet-imagenet", stream, "slda", seed, "mnist") for stream in streams.STREAMS for seed in (0, 1)]
    assert [(r.stream, r.seed) for r in runs if useful(r, 0)] == [("split-two", 0), ("split-five", 0)]
