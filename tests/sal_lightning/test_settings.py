import pytest

from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.settings import Settings

WRONG = [
    ("protection", "weights", r"protection.*'subspace', 'element', 'tensor'.*'weights'"),
    ("protection", None, "protection.*None"),
    ("consolidate_on", "always", "consolidate_on.*'novelty', 'fit', None or a whole number.*'always'"),
    ("consolidate_on", 0, "consolidate_on.*got 0"),
    ("consolidate_on", -5, "consolidate_on.*got -5"),
    ("consolidate_on", 2.5, "consolidate_on.*2.5"),
    ("consolidate_on", True, "consolidate_on.*True"),
    ("strength", 0, "strength.*> 0.*got 0"),
    ("strength", -1.0, "strength.*-1.0"),
    ("strength", float("nan"), "strength.*nan"),
    ("strength", float("inf"), "strength.*inf"),
    ("strength", "much", "strength.*'much'"),
    ("recall", -0.1, "recall.*>= 0.*-0.1"),
    ("share", 0.0, r"share.*\(0, 1\].*0.0"),
    ("share", 1.1, "share.*1.1"),
    ("share", True, "share.*True"),
]


@pytest.mark.parametrize(("argument", "value", "message"), WRONG)
def test_an_invalid_setting_is_refused_at_construction(argument, value, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{argument: value})
    with pytest.raises(ValueError, match=message):
        SALCallback(**{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [("consolidate_on", None), ("consolidate_on", 7), ("consolidate_on", "fit"), ("share", 1), ("recall", 0)],
)
def test_the_bounds_of_ranges_are_allowed(argument, value):
    assert getattr(SALCallback(**{argument: value}).settings, argument) == value


def test_callback_and_layer_have_the_same_defaults():
    import inspect

    callback, layer = (inspect.signature(door).parameters for door in (SALCallback, CommunicationLayer))
    for name, default in vars(Settings()).items():
        assert callback[name].default == layer[name].default == default
