"""Names of methods and their variants."""

import re

import pytest

from experiments.continual import methods
from experiments.continual.protocol import run
from sal_lightning import SALCallback
from sal_lightning.rules import subspace


def test_a_variant_has_its_options_and_constants_for_as_long_as_it_runs() -> None:
    before = subspace.MIN_RANK
    with methods.varied("sal:strength=8,rules.subspace.MIN_RANK=7", "split-task") as guard:
        assert isinstance(guard, SALCallback)
        assert (guard.settings.strength, subspace.MIN_RANK) == (8, 7)
    assert before == subspace.MIN_RANK


@pytest.mark.parametrize("method", ["sal:strength", "sal:strength=open()"])
def test_a_variant_that_cannot_be_read_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=f"Expected method to be .* got {re.escape(repr(method))}"):
        methods.known(method)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected method to be one of .*got 'magic'"):
        run("split-domain", "magic", seed=0, steps=1, data="digits")


@pytest.mark.parametrize(
    "method",
    ["sal:strenth=2", "sal:rules.subspace.MSK=2", "sal:rules.subspac.MASK=2", "plain:strength=2", "ridge:wdth=3"],
)
def test_a_variant_of_what_is_not_there_is_refused(method: str) -> None:
    with (
        pytest.raises(ValueError, match=f"existing options or constants, got {re.escape(repr(method))}"),
        methods.varied(method, "split-task"),
    ):
        pass
