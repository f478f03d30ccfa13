"""The published network."""

import lightning as L
import pytest
import torch
from torch import nn

from experiments.continual.batches import StreamData
from experiments.continual.methods import network
from experiments.continual.model import MLP
from experiments.continual.protocol import PUBLISHED
from experiments.continual.streams import StreamName


def test_only_the_outputs_in_play_are_trained() -> None:
    L.seed_everything(0, verbose=False)
    data = StreamData("split-task", "digits", steps=2, batch=16)
    model = MLP(data.inputs, data.outputs, width=8)
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    model.training_step(data.train_dataloader().dataset[3], 3).backward()
    moved = model.head.weight.grad.abs().sum(1) > 0  # type: ignore[union-attr]
    assert moved.nonzero().flatten().tolist() == [2, 3]


def test_features_are_the_input_of_the_head() -> None:
    model, x = MLP(64, 10, width=8), torch.rand(3, 64)
    assert model(x).equal(model.head(model.features(x)))
    assert (model.features(x) >= 0).all()


def test_published_nets_have_their_published_size() -> None:
    def size(*shape: int) -> int:
        return sum(p.numel() for p in MLP(*shape).parameters())

    assert size(784, 10, 400) == 478_410
    assert size(1024, 10, 1000) == 2_036_010


@pytest.mark.parametrize(
    ("stream", "sizes", "bias"),
    [
        ("owm-class", [784, 800, 10], True),
        ("owm-permuted", [784, 800, 800, 10], True),
        ("gpm-permuted", [784, 100, 100, 10], False),
        ("split-class", [784, 400, 400, 10], True),
    ],
)
def test_a_stream_has_the_network_of_its_paper(stream: StreamName, sizes: list[int], bias: bool) -> None:
    model = network("plain", stream, 784, 10, **PUBLISHED[stream].network(), lr=1e-3)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [layers[0].in_features, *(m.out_features for m in layers)] == sizes
    assert all((m.bias is not None) == bias for m in layers)


def test_a_method_has_its_own_optimizer_and_options_change_it() -> None:
    def sgd(method: str, stream: StreamName = "split-class") -> dict[str, float]:
        made = network(method, stream, 4, 2, width=3, lr=1e-3).configure_optimizers()
        assert isinstance(made, torch.optim.SGD)
        return made.defaults

    assert (sgd("owm")["lr"], sgd("owm")["momentum"]) == (0.2, 0.9)
    assert (sgd("owm:lr=0.1")["lr"], sgd("owm:lr=0.1")["momentum"]) == (0.1, 0.9)
    assert (sgd("owm", "owm-permuted")["lr"], sgd("owm", "owm-permuted")["momentum"]) == (2.0, 0.0)
    assert sgd("gpm")["lr"] == 0.01
