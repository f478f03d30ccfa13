from contextlib import suppress

import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer
from tests.everywhere.common import (
    BEFORE,
    Child,
    Marks,
    Net,
    adam,
    equal,
    stream,
    weights,
)

pytestmark = pytest.mark.slow


def data():
    return stream(BEFORE, AFTER, heads=True)


AFTER = 36
# The number of the step in which something raises: the last of a round, after which what moved is put back.
FALL = 31
KINDS = pytest.mark.parametrize("kind", [torch.optim.Adam, Child])


class Falls(RuntimeError):
    pass


def fall():
    raise Falls


def falling(kind, after_update):
    """An optimizer that raises in one step, before or after it has moved the weights."""

    class Falling(kind):
        number = -1

        def step(self, closure=None):
            self.number += 1
            if self.number == FALL and not after_update:
                fall()
            super().step(closure)
            if self.number == FALL:
                fall()

    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # from now on torch hooks the parent's step too
    return lambda parameters: Falling(parameters, lr=5e-3)


def bare(model, step, strength=4.0):
    """A plain loop that carries on after an exception; what was held, as it was after step ``FALL``, and all steps."""
    optimizer = model.configure_optimizers()
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=strength)
    marks = None
    for i, b in enumerate(data()):
        if i == BEFORE:
            comm.consolidate()

        def ask(i=i, b=b):
            optimizer.zero_grad()
            loss = model.training_step(b, i)
            loss.backward()
            comm.analyze()
            comm.protect()
            return loss

        with suppress(Falls):
            step(i, optimizer, ask)
        if i == FALL:
            marks = Marks(comm)
    return marks, comm.step


def ask_and_step(i, optimizer, ask):
    ask()
    optimizer.step()


def ask_and_do_not_step_once(i, optimizer, ask):
    ask()
    if i != FALL:
        optimizer.step()


def leave_out_one_step(i, optimizer, ask):
    if i != FALL:
        ask_and_step(i, optimizer, ask)


def closure_that_falls_at_its_start(i, optimizer, ask):
    optimizer.step(lambda: fall() if i == FALL else ask())


def closure_that_falls_at_its_end(i, optimizer, ask):
    optimizer.step(lambda: (ask(), fall()) if i == FALL else ask())


@KINDS
def test_after_an_optimizer_fell_before_it_moved_training_goes_on_as_if_it_had_not_been_called(kind):
    fallen, reference = Net(falling(kind, after_update=False), heads=2), Net(adam, heads=2)
    _, steps = bare(fallen, ask_and_step)
    bare(reference, ask_and_do_not_step_once)
    assert steps == BEFORE + AFTER
    assert equal(weights(fallen), weights(reference))


@KINDS
def test_after_an_optimizer_fell_with_weights_moved_what_is_held_stays(kind):
    marks, steps = bare(Net(falling(kind, after_update=True), heads=2), ask_and_step, strength=1e9)
    assert steps == BEFORE + AFTER
    assert max(marks.moved()) < 1e-5


@pytest.mark.parametrize(
    ("falls", "like"),
    [
        (closure_that_falls_at_its_start, leave_out_one_step),
        (closure_that_falls_at_its_end, ask_and_do_not_step_once),
    ],
)
def test_after_a_closure_fell_training_goes_on_as_without_that_step(falls, like):
    fallen, reference = Net(adam, heads=2), Net(adam, heads=2)
    _, steps = bare(fallen, falls)
    _, expected = bare(reference, like)
    assert steps == expected
    assert equal(weights(fallen), weights(reference))
