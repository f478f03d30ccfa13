"""Which gradients are analyzed, and when: after the backward pass that ends a step."""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision

from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.rules.subspace import SubspaceRule
from tests.everywhere.common import (
    At,
    Net,
    adam,
    batch,
    by_hand,
    differences,
    equal,
    fit,
    found,
    furthest,
    sgd,
    split,
    stream,
    weights,
)
from tests.everywhere.test_manual import Gan

pytestmark = pytest.mark.slow

CHANGE = 36
WHOLE = stream(CHANGE, 12)
RUNS = pytest.mark.parametrize(
    ("make", "protection", "precision"),
    [
        (sgd, "subspace", "single"),
        (adam, "subspace", "scaled"),
        (adam, "element", "single"),
        (sgd, "element", "scaled"),
    ],
)


class Exact(MixedPrecision):
    """Scales the loss by a power of two and casts nothing: each number is that of single precision."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))

    def autocast_context_manager(self):
        return nullcontext()


PRECISIONS = pytest.mark.parametrize("precision", ["single", "scaled"])
OPTIONS = {"single": dict, "scaled": lambda: {"plugins": [Exact()]}}


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


def fused(parameters):
    return torch.optim.Adam(parameters, lr=5e-3, fused=True)


class Watched(Net):
    """Notes how many steps were analyzed, and the gradients: after each backward pass, and before each step."""

    def __init__(self, callback, make=sgd, nothing=()):
        super().__init__(make)
        self.callback, self.nothing = callback, nothing
        self.after_backward, self.before_step = [], []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx in self.nothing else loss

    def look(self):
        gradients = [p.grad.clone() for p in self.parameters() if p.grad is not None]
        return [layer.step for layer in self.callback.layers], gradients

    def on_after_backward(self):
        self.after_backward.append(self.look())

    def on_before_optimizer_step(self, optimizer):
        self.before_step.append(self.look())

    def steps(self):
        """Steps analyzed by then, of the first optimizer."""
        return [steps[0] for steps, _ in self.after_backward], [steps[0] for steps, _ in self.before_step]


# --- the last micro-batch of a step, and no other ---


@PRECISIONS
@pytest.mark.parametrize("make", [sgd, fused])
def test_of_accumulated_batches_the_last_is_analyzed_after_its_backward_pass(precision, make):
    """Ten batches by threes: the last step has one."""
    callback = SALCallback()
    model = Watched(callback, make)
    fit(model, stream(10), callback, accumulate_grad_batches=3, **OPTIONS[precision]())
    assert model.steps() == ([0, 0, 1, 1, 1, 2, 2, 2, 3, 4], [1, 2, 3, 4])


@PRECISIONS
def test_a_schedule_of_accumulation_is_followed(precision):
    callback = SALCallback()
    model, schedule = Watched(callback), GradientAccumulationScheduler({0: 1, 1: 2})
    fit(model, stream(4), callback, schedule, max_epochs=2, **OPTIONS[precision]())
    assert model.steps() == ([1, 2, 3, 4, 4, 5, 5, 6], [1, 2, 3, 4, 5, 6])


def test_of_a_step_with_several_backward_passes_the_first_is_analyzed():
    callback = SALCallback()
    model = Watched(callback, lbfgs)
    fit(model, stream(3), callback)
    after, before = model.steps()
    assert after == before
    assert len(after) > 3
    assert sorted(set(after)) == [1, 2, 3]


@PRECISIONS
def test_gradients_are_analyzed_whole_and_held_back_at_the_step(precision):
    callback = SALCallback(consolidate_on=None, strength=1e6)
    model, before = Watched(callback), []
    helper = At(20, lambda: (callback.consolidate(), before.extend(weights(model))))
    fit(model, stream(21), callback, helper, **OPTIONS[precision]())
    (_, whole), (_, held) = model.after_backward[-1], model.before_step[-1]
    scale = 1024.0 if precision == "scaled" else 1.0
    plain = Net()
    plain.load_state_dict(dict(zip(plain.state_dict(), before, strict=True)))
    plain.training_step(stream(21)[-1], 20).backward()
    assert equal([g / scale for g in whole], [p.grad for p in plain.parameters()])
    assert all(h.norm() < 0.5 * g.norm() / scale for h, g in zip(held, whole, strict=True))


# --- what is learned is that of the plain loop ---


@RUNS
def test_all_that_is_learned_is_what_the_plain_loop_learns_bit_for_bit(make, protection, precision):
    model, reference, callback = Net(make), Net(make), SALCallback(protection=protection)
    comm = by_hand(reference, WHOLE, protection=protection)
    fit(model, WHOLE, callback, **OPTIONS[precision]())
    assert found(comm.events, CHANGE)
    assert equal(weights(model), weights(reference))
    assert differences(callback.layers[0].state_dict(), comm.state_dict()) == []


@RUNS
def test_accumulated_it_is_what_a_plain_loop_that_accumulates_learns_bit_for_bit(make, protection, precision):
    batches, model, reference = split(WHOLE, 2), Net(make), Net(make)
    callback = SALCallback(protection=protection)
    optimizer = reference.configure_optimizers()
    comm = CommunicationLayer(reference, optimizer, protection=protection)
    for i, b in enumerate(batches):
        (reference.training_step(b, i) / 2).backward()
        if i % 2:
            comm.analyze()
            comm.protect()
            optimizer.step()
            optimizer.zero_grad()
    comm.settle()
    comm.detach()
    fit(model, batches, callback, accumulate_grad_batches=2, **OPTIONS[precision]())
    assert found(comm.events, CHANGE)
    assert equal(weights(model), weights(reference))
    assert differences(callback.layers[0].state_dict(), comm.state_dict()) == []


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_gradients_that_a_fused_optimizer_unscales_are_learned_from_in_true_units_bit_for_bit(protection):
    models, callbacks = [Net(fused), Net(fused)], [SALCallback(protection=protection) for _ in range(2)]
    fit(models[0], WHOLE, callbacks[0])
    fit(models[1], WHOLE, callbacks[1], plugins=[Exact()])
    assert found(callbacks[0].events, CHANGE)
    assert furthest(*map(weights, models)) < 1e-6  # it unscales within its own sums
    for key in ("events", "step"):
        assert getattr(callbacks[0].layers[0], key) == getattr(callbacks[1].layers[0], key)
    if protection == "subspace":
        demands = [[rule.demand.q for rule in c.layers[0].rules] for c in callbacks]
    else:
        demands = [c.layers[0].rules[0].memory for c in callbacks]
    for a, b in zip(*demands, strict=True):
        assert torch.allclose(a, b, rtol=1e-3)


# --- a training step that returns None ---


# Lightning says so once in a process.
LEFT_OUT = pytest.mark.filterwarnings("ignore:`training_step` returned `None`")


@LEFT_OUT
def test_where_the_last_of_accumulated_batches_is_left_out_the_step_is_made_of_the_others():
    """The optimizer steps by the first batch's gradients: analyzed when it does."""
    callback = SALCallback()
    model = Watched(callback, nothing=(3,))
    fit(model, stream(6), callback, accumulate_grad_batches=2)
    assert model.steps() == ([0, 1, 1, 2, 3], [1, 2, 3])


@LEFT_OUT
@pytest.mark.parametrize("make", [sgd, fused])
def test_where_the_scaler_takes_no_step_for_want_of_a_loss_none_was_ever_seen(make):
    callback, seen = SALCallback(), []
    model = Watched(callback, make, nothing=(CHANGE * 2 + 13,))
    look = lambda: seen.append((weights(model), callback.layers[0].state_dict()))  # noqa: E731
    helpers = [At(CHANGE * 2 + at, look) for at in (12, 14)]
    fit(model, split(WHOLE, 2), callback, *helpers, accumulate_grad_batches=2, plugins=[Exact()])
    (w0, state0), (w1, state1) = seen
    assert equal(w0, w1)
    assert differences(state0, state1) == []
    assert callback.layers[0].step == len(WHOLE) - 1


# --- steps of one's own ---


class Own(Net):
    """Steps by every second batch only, and lets the others go."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


@pytest.mark.parametrize(("make", "precision"), [(sgd, "single"), (adam, "scaled")])
def test_a_batch_that_its_module_takes_no_step_by_is_not_analyzed(make, precision):
    """Expected are the inputs of both batches and the gradients of the second."""
    batches, model, reference, callback = stream(2 * CHANGE, 16), Own(make), Net(make), SALCallback()
    optimizer = reference.configure_optimizers()
    comm = CommunicationLayer(reference, optimizer)
    for i, b in enumerate(batches):
        optimizer.zero_grad()
        reference.training_step(b, i).backward()
        if i % 2:
            comm.analyze()
            comm.protect()
            optimizer.step()
    comm.settle()
    comm.detach()
    fit(model, batches, callback, **OPTIONS[precision]())
    assert found(comm.events, CHANGE)
    assert equal(weights(model), weights(reference))
    assert differences(callback.layers[0].state_dict(), comm.state_dict()) == []


class Watching(Gan):
    """Notes how many steps of each optimizer were analyzed, after each backward pass and before each step."""

    def __init__(self, callback):
        super().__init__()
        self.callback, self.after_backward, self.before_step = callback, [], []

    def on_after_backward(self):
        self.after_backward.append(tuple(layer.step for layer in self.callback.layers))

    def on_before_optimizer_step(self, optimizer):
        self.before_step.append(tuple(layer.step for layer in self.callback.layers))


def test_in_manual_optimization_gradients_are_analyzed_by_the_optimizer_that_steps():
    """(generator, discriminator): each batch steps the second, every other one then the first."""
    callback = SALCallback()
    model = Watching(callback)
    fit(model, stream(4), callback)
    assert model.after_backward == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (1, 4)]
    assert model.before_step == [(0, 1), (0, 2), (1, 2), (1, 3), (1, 4), (2, 4)]


def test_an_overflow_after_the_backward_pass_is_a_step_that_never_was():
    callback, seen = SALCallback(), []
    model = Watched(callback)
    look = lambda: seen.append((weights(model), callback.layers[0].state_dict()))  # noqa: E731
    batches = [*WHOLE[:45], batch(3, 0, weight=float("inf")), *WHOLE[45:]]
    fit(model, batches, callback, At(45, look), At(46, look), plugins=[Exact()])
    assert equal(seen[0][0], seen[1][0])
    assert differences(seen[0][1], seen[1][1]) == []
    after, before = model.steps()
    assert after == before
    assert after[44:47] == [45, 45, 46]


@pytest.mark.parametrize("make", [sgd, adam])
def test_cached_operands_are_recomputed_whenever_what_is_held_changes(make, monkeypatch):
    """Held by hand, then a strange batch that is dismissed, then a change; one run computes it anew in each step."""
    first, second = stream(50), stream(0, 10)
    batches, ended = [*first[:40], batch(2, 0), *first[40:], *second], []
    cached = SubspaceRule.operands.fget

    def anew(rule):
        rule._operands = None
        return cached(rule)

    for way in (cached, anew):
        monkeypatch.setattr(SubspaceRule, "operands", property(way))
        model, callback = Net(make), SALCallback()
        fit(model, batches, callback, At(5, callback.consolidate))
        ended.append((weights(model), callback.events, callback.layers[0].state_dict()))
    assert ended[0][1][0] == 5
    assert found(ended[0][1][1:], 51)
    assert differences(*ended) == []
