"""A run through all stages."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from experiments.language.methods import METHODS
from experiments.language.protocol import Result, run
from experiments.language.settings import Settings
from tests.experiments.language.common import DOMAINS, SCALE

pytestmark = pytest.mark.slow


def result(folder: Path, method: str = "plain", seed: int = 0) -> Result:
    return run(Settings(method, METHODS[method].strengths[0], seed, 1e-2, SCALE), DOMAINS, folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """The run of a method, made once; first stages are kept for all."""
    folder = tmp_path_factory.mktemp("first")
    return cache(lambda method: result(folder, method))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_through_all_stages(method: str, ran: Callable[[str], Result]) -> None:
    found = ran(method)
    assert len(found.losses) == len(found.seconds) == 3
    assert all(list(after) == ["letters", "digits"] for after in found.losses)
    assert found.losses[1]["digits"]["test"] < found.losses[0]["digits"]["test"]
    assert json.loads(json.dumps(found.record(), allow_nan=False))["settings"]["method"] == method


def test_all_methods_begin_from_the_same_first_stage(ran: Callable[[str], Result]) -> None:
    assert ran("plain").losses[0] == ran("sal").losses[0]


def test_a_run_repeats_to_the_bit_and_another_seed_is_another_run(tmp_path: Path, ran: Callable[[str], Result]) -> None:
    first, again, other = ran("plain"), result(tmp_path), result(tmp_path, seed=1)
    assert first.losses == again.losses
    assert first.losses != other.losses


def test_fewer_weights_learn_in_adapters(ran: Callable[[str], Result]) -> None:
    assert 0 < ran("lora").learning < ran("plain").learning
