"""What is watched in the runs of the demo and the docs."""

from pathlib import Path

import pytest
import torch

from experiments.continual.data import load
from experiments.continual.streams import make
from experiments.watched import FEATURES, prototypes, remind, watch
from sal_lightning.report.reading import read


def test_prototypes_are_the_means_of_the_classes() -> None:
    features, labels = torch.arange(8.0).view(4, 2), torch.tensor([3, 1, 3, 1])
    assert prototypes(features, labels).tolist() == [[4.0, 5.0], [2.0, 3.0]]


def test_states_end_at_the_pattern_they_were_nearest_to() -> None:
    known = 5 * torch.eye(3, 16)
    generator = torch.Generator().manual_seed(0)
    states = known[[0] * 6 + [1] * 3] + torch.randn(9, 16, generator=generator)
    cascade = remind(states, known)
    found = cascade.emerge()
    assert cascade.generation == 8
    assert int((found.pulse.state @ known.mT).argmax()) == 0
    assert found.share == pytest.approx(6 / 9)


@pytest.mark.slow
def test_the_features_followed_are_those_of_the_first_task_from_its_end(tmp_path: Path) -> None:
    watch("split-domain", "plain", tmp_path, seed=0, steps=20, data="digits", every=100)
    steps, values = read([tmp_path / "plain"]).series["feature_drift"]
    assert steps == [*range(20, 101, 5)]
    assert values[0] == 0.0
    assert all(value > 0 for value in values[1:])
    assert len(make("split-domain", load("digits"), 0).tasks[0].test_x[:FEATURES]) > 20


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_replaces_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        watch("split-domain", "plain", tmp_path, seed=0, steps=5, data="digits", every=100)
    assert read([tmp_path / "plain"]).series["feature_drift"].steps == [*range(5, 26, 5)]
