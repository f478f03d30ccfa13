"""The published network."""

import lightning as L
import torch

from experiments.continual.batches import StreamData
from experiments.continual.model import MLP


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
