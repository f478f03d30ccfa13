"""Single runs: the training, the consolidations that are asked for, and the measures."""

import pytest
import torch
from torch import nn

from experiments.continual.data import load
from experiments.networks import networks, streams
from experiments.networks.protocol import METHODS, Run, data_of, measures, run, useful
from experiments.networks.training import Learner, Steps, evaluating


def record(network="mlp", stream="split-two", method="sal", steps=45):
    return run(Run(network, stream, method, 0, "digits", steps))


@pytest.fixture(scope="module")
def runs():
    return {method: record(method=method) for method in METHODS}


@pytest.mark.slow
def test_sal_finds_the_change_by_itself_and_keeps_what_plain_training_loses(runs):
    assert runs["plain"]["events"] == runs["joint"]["events"] == []
    assert (runs["sal"]["changes"], runs["sal"]["length"]) == ([45], 90)
    (event,) = runs["sal"]["events"]
    assert 45 < event <= 65
    assert measures(runs["plain"])["old"] < 0.2
    assert measures(runs["sal"])["old"] > 0.6
    assert min(runs["joint"]["kept"]) > 0.8


@pytest.mark.slow
def test_told_means_consolidated_before_the_first_batch_of_each_later_task_and_then_alone(runs):
    assert runs["told"]["events"] == [45]
    assert record(stream="split-five", method="told", steps=5)["events"] == [5, 10, 15, 20]
    assert record(stream="split-two-fits", method="told", steps=5)["events"] == [5]


@pytest.mark.slow
def test_until_the_change_all_methods_train_the_same_network(runs):
    assert runs["plain"]["learned"][0] == runs["sal"]["learned"][0] == runs["told"]["learned"][0] > 0.9
    assert runs["sal"]["learned"][-1] == runs["sal"]["kept"][-1]


@pytest.mark.slow
def test_plain_training_is_that_of_a_loop_written_out(runs):
    import lightning as L
    import torch.nn.functional as F

    from experiments.networks.networks import make

    arrays = load("digits")
    stream = streams.make("split-two", arrays, 0, 45, 32)
    L.seed_everything(0, verbose=False)
    net = make("mlp", 8)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for x, y in stream.batches():
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    x, y = stream.new()
    assert runs["plain"]["kept"][1] == float((net(x).argmax(1) == y).double().mean())


@pytest.mark.slow
def test_a_network_in_evaluation_mode_trains_as_one_in_training_mode():
    kept, in_evaluation = (record(network, method="told", steps=10)["kept"] for network in ("mlp", "mlp-eval"))
    assert in_evaluation == kept
    assert kept[0] > 0.5


class Free(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 10))

    def forward(self, x):
        return x.flatten(1) @ self.weight


def test_what_sal_cannot_do_well_is_in_the_record(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(networks, "make", lambda *_: Free())
        assert record("gru", steps=5)["warned"] == ["elements"]
    assert record("mlp", steps=5)["warned"] == []


@pytest.mark.parametrize("network", ["noise-level-first", "denoiser"])
def test_networks_with_noise_see_the_same_in_every_run(network):
    first, again = (record(network, method="plain", steps=4) for _ in range(2))
    assert first["kept"] == again["kept"]


def test_looking_leaves_each_module_in_its_mode():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    net[1].eval()
    with evaluating(net):
        assert not any(module.training for module in net.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert torch.is_grad_enabled()


def test_noise_at_tests_is_always_the_same_and_parts_are_put_together():
    stream = streams.make("split-two", load("digits"), 0, 5, 32)
    learner = Learner("noise-level-first", Level())
    assert learner.score(stream.new()) == learner.score(stream.new()) == pytest.approx(0.1, abs=0.1)
    assert len(list(Steps(stream, "mlp", range(3, 8), joint=False))) == 5


class Level(nn.Module):
    """Answers a class by the level of noise alone."""

    def forward(self, x, level):
        return torch.nn.functional.one_hot((10 * level).long().clamp(max=9), 10).float()


def test_runs_that_add_nothing_are_left_out():
    def wanted(network, seed):
        return {
            (stream, method)
            for stream in streams.STREAMS
            for method in METHODS
            if useful(Run(network, stream, method, seed, "mnist"), first_seed=3)
        }

    assert wanted("mlp", 4) == {
        *((stream, method) for stream in list(streams.STREAMS)[:5] for method in ("sal", "told")),
        ("labels", "sal"),
    }
    assert wanted("mlp", 3) - wanted("mlp", 4) == {
        ("stationary", "sal"),
        *((stream, "plain") for stream in list(streams.STREAMS)[:6]),
        *((stream, "joint") for stream in ("split-two", "split-five", "permuted", "brighter")),
    }
    assert "labels" not in {stream for stream, _ in wanted("denoiser", 3)}
    assert {stream for stream, _ in wanted("mobilenet-imagenet", 3)} == {
        "split-two",
        "split-five",
        "brighter",
        "stationary",
    }
    assert wanted("mobilenet-imagenet", 4) == set()


def test_mobilenet_is_shown_clothes_and_unknown_methods_are_refused():
    assert data_of("mobilenet-imagenet", "mnist") == "fashion-mnist"
    assert (data_of("mlp", "mnist"), data_of("mobilenet-imagenet", "digits")) == ("mnist", "digits")
    with pytest.raises(ValueError, match=r"method to be one of \('plain', .*, got 'lwf'"):
        record(method="lwf")
    with pytest.raises(ValueError, match=r"with options \('sal', .*, got 'plain:pull=0'"):
        record(method="plain:pull=0")
