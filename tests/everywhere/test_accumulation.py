from functools import cache

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from sal_lightning import SALCallback
from tests.everywhere.common import (
    At,
    Net,
    adam,
    batch,
    by_hand,
    fit,
    found,
    furthest,
    merge,
    sgd,
    split,
    stream,
    weights,
)

pytestmark = pytest.mark.slow

CLOSE = 1e-6
CHANGE = 36
PAIRS = [(sgd, "subspace"), (adam, "subspace"), (adam, "element")]
RUNS = pytest.mark.parametrize(("make", "protection"), PAIRS)
WHOLE = stream(CHANGE, 12)


@cache
def whole(make, protection):
    """The plain loop on the big batches, and without protection."""
    model, plain = Net(make), Net(make)
    comm = by_hand(model, WHOLE, protection=protection)
    by_hand(plain, WHOLE, consolidate_on=None)
    assert furthest(weights(model), weights(plain)) > 1e3 * CLOSE
    return comm, weights(model)


def assert_like(model, callback, comm, expected):
    assert callback.events == comm.events
    assert callback.layers[0].step == comm.step
    assert furthest(weights(model), expected) < CLOSE


@pytest.mark.parametrize(
    ("parts", "make", "protection"), [(1, adam, "subspace"), *((2, *pair) for pair in PAIRS[:2]), (4, *PAIRS[2])]
)
def test_accumulated_batches_are_the_big_batch(parts, make, protection):
    model, callback = Net(make), SALCallback(protection=protection)
    fit(model, split(WHOLE, parts), callback, accumulate_grad_batches=parts)
    assert found(callback.events, CHANGE)
    assert_like(model, callback, *whole(make, protection))


@RUNS
def test_a_short_last_window_is_a_smaller_batch_of_smaller_weight(make, protection):
    """Lightning divides by the full number of batches there too; the second epoch goes on from that step."""
    first, short = stream(CHANGE, 6), batch(1, 99, rows=16)
    model, reference, callback = Net(make), Net(make), SALCallback(protection=protection)
    comm = by_hand(reference, [*first, (*short[:2], 0.5, 0)] * 2, ends=[len(first) + 1], protection=protection)
    fit(model, [*split(first, 2), short], callback, accumulate_grad_batches=2, max_epochs=2)
    assert found(comm.events[:1], CHANGE)
    assert_like(model, callback, comm, weights(reference))


@pytest.mark.parametrize(
    ("by", "make", "protection"),
    [("hand", sgd, "subspace"), ("hand", adam, "element"), *(("the clock", *pair) for pair in PAIRS[1:])],
)
def test_a_schedule_changes_the_window_while_something_is_held(by, make, protection):
    """Epochs of 24 batches of 8 rows that make 24 steps, then 6, then 12; held from the 28th, or each 14th."""
    epoch = stream(12, 12, rows=8)
    merged = [b for n in (1, 4, 2) for b in merge(epoch, n)]
    choices = {"protection": protection, "consolidate_on": None if by == "hand" else 14}
    model, reference, callback = Net(make), Net(make), SALCallback(**choices)
    comm = by_hand(reference, merged, consolidate_before=27 if by == "hand" else None, ends=(24, 30), **choices)
    helpers = [At(24 + 3 * 4, callback.consolidate)] if by == "hand" else []
    schedule = GradientAccumulationScheduler({0: 1, 1: 4, 2: 2})
    fit(model, epoch, callback, schedule, *helpers, max_epochs=3)
    assert comm.events == ([27] if by == "hand" else [14, 28, 42])
    assert comm.spectrum().volatile < 100
    assert_like(model, callback, comm, weights(reference))


@pytest.mark.parametrize("make", [sgd, adam])
def test_what_is_held_by_hand_between_steps_stays_held_over_accumulated_batches(make):
    batches = stream(20, 20)
    model, reference, callback = Net(make), Net(make), SALCallback(consolidate_on=None)
    comm = by_hand(reference, batches, consolidate_before=20, consolidate_on=None)
    fit(model, split(batches, 4), callback, At(20 * 4, callback.consolidate), accumulate_grad_batches=4)
    assert comm.events == [20]
    assert_like(model, callback, comm, weights(reference))
