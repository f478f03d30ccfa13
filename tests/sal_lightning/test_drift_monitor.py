"""Drift of features, in real runs."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from sal_lightning.drift_monitor import DriftMonitor
from sal_lightning.report.reading import read
from tests.everywhere.models import Batches, loader
from tests.sal_lightning.report.runs import Net, fit

X = Batches()[0][0]


class Slow(Callback):
    """Reference features of every step, from calling the layers directly in evaluation mode."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, model, *args):
        with torch.no_grad():
            self.seen[trainer.global_step] = model.net[1](model.net[0](X))


def drifts(folder, since, **options):
    slow = Slow()
    watch = DriftMonitor((X, None), since=since, **options)
    fit(folder, [watch, slow], logger=CSVLogger(folder, name="", version="run"))
    return read([folder / "run"]).series["feature_drift"], slow.seen


@pytest.mark.parametrize("since", [0, 37])
def test_drift_is_the_relative_distance_from_the_first_features(tmp_path, since):
    series, seen = drifts(tmp_path, since)
    first = seen[max(since, 1)]
    assert series.steps == [step for step in range(10, 61, 10) if step >= since]
    expected = [float((seen[step] - first).norm() / first.norm()) for step in map(int, series.steps)]
    assert series.values == pytest.approx(expected, rel=1e-5)
    assert series.values[-1] > series.values[0]


def test_the_monitor_does_not_affect_training(tmp_path):
    _, plain = fit(tmp_path, [])
    _, watched = fit(tmp_path, [DriftMonitor(X)])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert all(module.training for module in watched.modules())


def test_another_layer_can_be_named(tmp_path):
    watch = DriftMonitor({"x": X}, layer="net.0")
    assert torch.equal(watch.features(Net()), X)


@pytest.mark.slow
def test_a_second_training_keeps_the_reference_of_the_first(tmp_path):
    watch = DriftMonitor(X)
    _, model = fit(tmp_path, [watch])
    copy = DriftMonitor(X)
    copy.load_state_dict(watch.state_dict())
    fit(tmp_path, [copy], model=model)
    assert copy.step == 120
    assert torch.equal(copy.first, watch.first)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"since to be a whole number >= 0, got -1"):
        DriftMonitor(X, since=-1)


def test_an_unknown_layer_is_refused_before_validation_begins(tmp_path):
    class Validated(Net):
        def val_dataloader(self):
            return loader(length=1)

        def validation_step(self, batch, batch_idx):
            raise AssertionError("validation began")

    with pytest.raises(ValueError, match=r"layer to be the name of a layer.*, got 'head'\. Nearest are \["):
        fit(tmp_path, [DriftMonitor(X, layer="head")], model=Validated(), num_sanity_val_steps=1)


class Attentive(nn.Module):
    """Its last Linear by name is the projection inside an attention module, which is called as a function."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        h = self.first(input=x)
        return self.attention(h, h, h)[0]


def test_the_default_layer_is_the_last_linear_that_is_called():
    model, x = Attentive(), torch.randn(3, 5, 4)
    assert torch.equal(DriftMonitor(x).features(model), x)
    by_name = DriftMonitor(x, layer="attention").features(model)
    assert torch.equal(by_name, model.first(x))


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_drift_of_a_compiled_model_equals_that_of_an_eager_one(in_place):
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(3, 4)
    expected = DriftMonitor(x).features(plain)
    compiled = plain
    if in_place:
        plain.compile(backend="eager")
    else:
        compiled = torch.compile(plain, backend="eager")
    compiled(x).sum().backward()
    assert torch.equal(DriftMonitor(x).features(compiled), expected)
    assert torch.equal(DriftMonitor(x, layer="2").features(compiled), expected)


def test_a_layer_that_is_not_called_is_refused():
    model = Attentive()
    with pytest.raises(
        ValueError, match=r"call the layer 'attention\.out_proj' with a real-valued tensor .* Set layer="
    ):
        DriftMonitor(torch.randn(3, 5, 4), layer="attention.out_proj").features(model)
