"""A run through all stages."""

import json
from pathlib import Path

import pytest

from experiments.language.methods import METHODS
from experiments.language.protocol import Result, run
from experiments.language.settings import Settings
from tests.experiments.language.common import DOMAINS, SCALE


def result(cache: Path, method: str = "plain", strength: float = 1e-2, seed: int = 0) -> Result:
    return run(Settings(method, strength, seed, 1e-2, SCALE), DOMAINS, cache)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_through_all_stages(method: str, tmp_path: Path) -> None:
    found = result(tmp_path, method, METHODS[method].strengths[0])
    assert len(found.losses) == len(found.seconds) == 3
    assert all(list(after) == ["letters", "digits"] for after in found.losses)
    assert found.losses[1]["digits"]["test"] < found.losses[0]["digits"]["test"]
    assert json.loads(json.dumps(found.record(), allow_nan=False))["settings"]["method"] == method


def test_all_methods_begin_from_the_same_first_stage(tmp_path: Path) -> None:
    plain, sal = (result(tmp_path, method) for method in ("plain", "sal"))
    assert plain.losses[0] == sal.losses[0]


def test_a_run_repeats_to_the_bit_and_another_seed_is_another_run(tmp_path: Path) -> None:
    first, again, other = result(tmp_path), result(tmp_path / "new"), result(tmp_path, seed=1)
    assert first.losses == again.losses
    assert first.losses != other.losses


def test_fewer_weights_learn_in_adapters(tmp_path: Path) -> None:
    assert 0 < result(tmp_path, "lora", 1).learning < result(tmp_path).learning
