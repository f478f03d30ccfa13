import copy
from functools import cache
from math import inf

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from sal_lightning import SALCallback
from tests.everywhere.common import (
    At,
    Marks,
    Net,
    adam,
    batch,
    differences,
    distance,
    equal,
    fit,
    found,
    sgd,
    split,
    stream,
    weights,
)

pytestmark = pytest.mark.slow

STEPS, CHANGE = 50, 36
BATCHES = stream(CHANGE, STEPS - CHANGE)


def scaled(growth_interval=2000):
    """Half precision with a scaler, which Lightning's own flag gives on a GPU only."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=growth_interval)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


def fused_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, fused=True)


def fused_adam(parameters):
    return torch.optim.Adam(parameters, lr=5e-3, fused=True)


def fused_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.1, fused=True)


HALF, BRAIN = torch.finfo(torch.float16).eps, torch.finfo(torch.bfloat16).eps
MODES = {
    "bf16-mixed": (BRAIN, lambda: {"precision": "bf16-mixed"}),
    "bf16-true": (BRAIN, lambda: {"precision": "bf16-true"}),
    "16-mixed": (HALF, scaled),
}
PLAIN, FUSED = [sgd, adam], [fused_sgd, fused_adam, fused_adamw]
CASES = [(mode, make) for mode in MODES for make in PLAIN] + [("16-mixed", make) for make in FUSED]
MODES_AND_OPTIMIZERS = pytest.mark.parametrize(("mode", "make"), CASES)
BY_ELEMENT = [("bf16-mixed", adam), ("bf16-true", adam), ("16-mixed", fused_adam)]
SCALED = [
    *((make, "subspace") for make in (sgd, fused_sgd, fused_adamw)),
    *((make, "element") for make in (adam, fused_adam)),
]


def tolerance(mode, end, start):
    """How far rounding may take the weights, relative to how far they have gone.

    With weights in single precision only the gradients are rounded, each step by at most ``eps`` of their size. Weights
    in half precision are rounded themselves: steps of ``eps`` of their size that add up like a random walk.
    """
    eps = MODES[mode][0]
    size = distance(end, [torch.zeros_like(w) for w in end]) / distance(end, start)
    return eps * STEPS**0.5 * size if mode.endswith("true") else eps


@cache
def single(make, protection):
    """Callback, and the weights before and after, of the run in single precision."""
    model, callback = Net(make), SALCallback(protection=protection)
    start = weights(model)
    fit(model, BATCHES, callback)
    return callback, start, weights(model)


@cache
def rounded(mode, make, protection):
    """The same in this mode."""
    model, callback = Net(make), SALCallback(protection=protection)
    start = weights(model)
    fit(model, BATCHES, callback, **MODES[mode][1]())
    return callback, start, weights(model)


@cache
def unprotected(mode, make):
    model = Net(make)
    fit(model, BATCHES, **MODES[mode][1]())
    return weights(model)


@pytest.mark.parametrize(
    ("mode", "make", "protection"),
    [*((*case, "subspace") for case in CASES), *((*case, "element") for case in BY_ELEMENT)],
)
def test_the_same_change_is_found_and_the_same_is_held_as_in_single_precision(mode, make, protection):
    expected, start, end = single(make, protection)
    callback, _, rounded_end = rounded(mode, make, protection)
    assert found(expected.events, CHANGE)
    assert callback.events == expected.events
    assert callback.spectrum() == pytest.approx(expected.spectrum(), abs=1)  # a weight at the edge of a band
    off = distance(rounded_end, end)
    assert off < tolerance(mode, end, start) * distance(end, start)
    assert off < 0.3 * distance(rounded_end, unprotected(mode, make))


@MODES_AND_OPTIMIZERS
def test_what_is_held_firmly_stays(mode, make):
    eps, options = MODES[mode]
    model, callback, marks = Net(make), SALCallback(consolidate_on=None, strength=1e9), []

    def consolidate():
        callback.consolidate()
        marks.append(Marks(callback.layers[0]))

    fit(model, stream(20, 20), callback, At(20, consolidate), **options())
    rounding = eps * 20**0.5 if mode.endswith("true") else 1e-5
    assert max(marks[0].moved()) < rounding


@pytest.mark.parametrize("make", [adam, fused_adam])
def test_importance_is_in_true_units_while_the_scale_grows(make):
    """The scale doubles every sixth step: late gradients must not count for more."""
    importance, observed = [], []
    for options in ({}, scaled(growth_interval=6)):
        model, callback = Net(make), SALCallback(protection="element", consolidate_on=30)
        fit(model, stream(30), callback, **options)
        importance.append([o.clone() for o in callback.layers[0].rules[0].memory])
        observed.append(callback.spectrum("observed"))
    assert distance(*importance) < 2 * HALF * distance(importance[0], [torch.zeros_like(o) for o in importance[0]])
    assert observed[1] == pytest.approx(observed[0], abs=1)


@pytest.mark.parametrize(("make", "protection"), SCALED)
def test_a_step_that_the_scaler_skips_changes_neither_weights_nor_state(make, protection):
    """With nothing held, in suspicion, and with something held; each batch is strange: it must raise no suspicion."""
    model, callback, seen = Net(make), SALCallback(protection=protection), []

    def look():
        seen.append((weights(model), copy.deepcopy(callback.state_dict())))

    skipped = (30, CHANGE + 1, 45)
    batches = list(BATCHES)
    for at in reversed(skipped):
        batches.insert(at, batch(3, 0, weight=inf))
    looks = [At(at + earlier + after, look) for earlier, at in enumerate(skipped) for after in (0, 1)]
    fit(model, batches, callback, *looks, **scaled())
    for (w0, state0), (w1, state1) in zip(seen[::2], seen[1::2], strict=True):
        assert equal(w0, w1)
        assert differences(state0, state1) == []
    assert len(seen) == 2 * len(skipped)
    expected, start, end = rounded("16-mixed", make, protection)
    assert found(expected.events, CHANGE)
    assert callback.events == expected.events
    assert callback.layers[0].step == STEPS
    # The scale is half as large after each, which rounds a little differently.
    assert distance(weights(model), end) < HALF * distance(end, start)


@pytest.mark.parametrize("make", [adam, fused_adam])
def test_one_overflow_among_accumulated_batches_drops_all_of_them(make):
    model, callback, seen = Net(make), SALCallback(), []

    def look():
        seen.append((weights(model), copy.deepcopy(callback.state_dict())))

    window = [batch(3, 0, rows=16), batch(3, 1, rows=16, weight=inf)]
    batches = [*split(BATCHES[:45], 2), *window, *split(BATCHES[45:], 2)]
    fit(model, batches, callback, At(90, look), At(92, look), accumulate_grad_batches=2, **scaled())
    (w0, state0), (w1, state1) = seen
    assert equal(w0, w1)
    assert differences(state0, state1) == []
    assert found(callback.events, CHANGE)
    assert callback.layers[0].step == STEPS


@pytest.mark.parametrize("make", [adam, fused_sgd, fused_adamw])
def test_after_a_skipped_step_what_is_held_firmly_stays(make):
    model, callback, marks = Net(make), SALCallback(consolidate_on=None, strength=1e9), []

    def consolidate():
        callback.consolidate()
        marks.append(Marks(callback.layers[0]))

    batches = stream(20, 20)
    fit(model, [*batches[:30], batch(1, 0, weight=inf), *batches[30:]], callback, At(20, consolidate), **scaled())
    assert max(marks[0].moved()) < 1e-5
