"""What is measured while a method trains."""

import pytest
import torch

from experiments.continual.batches import StreamData
from experiments.continual.evaluation import TaskAccuracy, accuracy, evaluating
from experiments.continual.model import MLP
from experiments.continual.protocol import trainer


def test_accuracy_counts_within_the_outputs_in_play() -> None:
    task = StreamData("split-task", "digits").stream.tasks[4]
    model = MLP(64, 10, width=8)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([9.0] * 8 + [0.0, 1.0]))
    assert accuracy(model, task) == pytest.approx(float((task.test_y == 9).float().mean()))


def test_evaluating_leaves_evaluation_mode_as_it_was() -> None:
    model = MLP(4, 2, width=2).eval()
    with evaluating(model):
        assert not torch.is_grad_enabled()
    assert not model.training


def test_every_must_be_positive() -> None:
    with pytest.raises(ValueError, match="Expected every to be at least 1 or None, got 0"):
        TaskAccuracy(every=0)


def test_a_second_fit_starts_a_new_matrix() -> None:
    watch, data = TaskAccuracy(), StreamData("split-domain", "digits", steps=2, batch=8)
    for _ in range(2):
        trainer([watch], "cpu").fit(MLP(64, 2, width=4), datamodule=data)
    assert len(watch.R) == 5
