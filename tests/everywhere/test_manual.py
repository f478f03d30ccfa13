from contextlib import contextmanager
from functools import cache

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import SALCallback
from tests.everywhere.common import (
    At,
    Marks,
    Net,
    adam,
    by_hand,
    equal,
    fit,
    found,
    furthest,
    sgd,
    split,
    stream,
    weights,
)

pytestmark = pytest.mark.slow

BEFORE, AFTER = 20, 20
CLOSE = 1e-6


class Manual(Net):
    """One optimizer, stepped by hand in one of several ways."""

    def __init__(self, way, make=sgd, every=1):
        super().__init__(make)
        self.automatic_optimization = False
        self.way, self.every = way, every

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer="raw" not in self.way)
        backward = (lambda loss: loss.backward()) if "loss.backward" in self.way else self.manual_backward

        def closure():
            optimizer.zero_grad()
            loss = Net.training_step(self, batch, batch_idx)
            backward(loss)
            return loss

        if "closure" in self.way:
            optimizer.step(closure=closure)
            return
        if batch_idx % self.every == 0:
            optimizer.zero_grad()
        backward(Net.training_step(self, batch, batch_idx) / self.every)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()


WAYS = ["manual_backward", "loss.backward", "raw", "raw, loss.backward"]
CHANGE = 36
BATCHES = stream(CHANGE, 12)
USUAL, *OTHERS = [
    (adam, "subspace", "novelty"),
    (sgd, "subspace", "novelty"),
    (adam, "element", "novelty"),
    (adam, "subspace", 15),
]


@cache
def looped(make, protection, consolidate_on):
    """Events and weights of the plain loop, which protection has changed."""
    model, plain = Net(make), Net(make)
    comm = by_hand(model, BATCHES, protection=protection, consolidate_on=consolidate_on)
    fit(plain, BATCHES)
    assert found(comm.events, CHANGE) if consolidate_on == "novelty" else comm.events == [15, 30, 45]
    assert furthest(weights(model), weights(plain)) > 1e3 * CLOSE
    return comm.events, weights(model)


def assert_logged(metrics, consolidations):
    assert metrics["sal/step"] == len(BATCHES)
    assert metrics["sal/consolidations"] == consolidations
    assert 0 < metrics["sal/suppressed"] < 1


def assert_like_the_loop(model, callback, run):
    events, expected = looped(*run)
    assert callback.events == events
    assert callback.layers[0].step == len(BATCHES)
    assert furthest(weights(model), expected) < CLOSE


@pytest.mark.parametrize(
    ("way", "make", "protection", "consolidate_on"),
    [
        *((way, *USUAL) for way in [*WAYS, "closure"]),
        *((way, *run) for way in ("manual_backward", "raw") for run in OTHERS),
    ],
)
def test_stepped_by_hand_in_any_way_it_is_watched_and_protected_like_the_plain_loop(
    way, make, protection, consolidate_on
):
    model, callback = Manual(way, make), SALCallback(protection=protection, consolidate_on=consolidate_on)
    trainer = fit(model, BATCHES, callback)
    assert_like_the_loop(model, callback, (make, protection, consolidate_on))
    assert_logged(trainer.callback_metrics, len(callback.events))


@pytest.mark.parametrize(("make", "protection", "consolidate_on"), [USUAL, *OTHERS[1:]])
def test_a_raw_optimizer_stepped_with_a_closure_is_watched_and_protected(make, protection, consolidate_on):
    """Here the gradients are made inside of the step."""
    model, callback = Manual("raw closure", make), SALCallback(protection=protection, consolidate_on=consolidate_on)
    fit(model, BATCHES, callback)
    assert_like_the_loop(model, callback, (make, protection, consolidate_on))


@pytest.mark.parametrize(
    ("way", "make", "protection", "consolidate_on"),
    [("manual_backward", *USUAL), *zip(("manual_backward", "raw", "raw"), *zip(*OTHERS, strict=True), strict=True)],
)
def test_batches_accumulated_by_hand_are_the_big_batch(way, make, protection, consolidate_on):
    model, callback = Manual(way, make, every=2), SALCallback(protection=protection, consolidate_on=consolidate_on)
    fit(model, split(BATCHES, 2), callback)
    assert_like_the_loop(model, callback, (make, protection, consolidate_on))


class Gan(L.LightningModule):
    """A generator stepped every second batch and a discriminator stepped in each; keeps the gradients they step by."""

    def __init__(self, raw=False, toggle=False):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.raw, self.toggle = raw, toggle
        self.G = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 20))
        self.D = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 1))
        self.gradients = {"G": [], "D": []}

    @contextmanager
    def turn(self, optimizer):
        if self.toggle:
            self.toggle_optimizer(optimizer)
        yield
        if self.toggle:
            self.untoggle_optimizer(optimizer)

    def step(self, name, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.gradients[name].append([p.grad.clone() for p in getattr(self, name).parameters()])
        optimizer.step()

    def training_step(self, batch, batch_idx):
        real, _, _, task = batch
        optimizers = self.optimizers(use_pl_optimizer=not self.raw)
        noise = torch.zeros(len(real), 8)
        noise[:, 4 * task : 4 * task + 4] = torch.randn(
            len(real), 4, generator=torch.Generator().manual_seed(batch_idx)
        )
        with self.turn(optimizers[1]):
            fake = F.softplus(self.D(self.G(noise))).mean()
            self.step("D", optimizers[1], fake + F.softplus(-self.D(real)).mean())
        if batch_idx % 2:
            with self.turn(optimizers[0]):
                self.step("G", optimizers[0], F.softplus(-self.D(self.G(noise))).mean())

    def configure_optimizers(self):
        G, D = list(self.G.parameters()), list(self.D.parameters())
        return torch.optim.Adam(G, lr=5e-3), torch.optim.SGD(D, lr=0.05, momentum=0.9)


KINDS = pytest.mark.parametrize("kind", ["plain", "toggle", "raw"])


def make_gan(kind):
    return Gan(raw=kind == "raw", toggle=kind == "toggle")


@cache
def train(kind, **choices):
    """A GAN on two tasks; everything that was consolidated after the first, and how its weights were then."""
    model, callback, then = make_gan(kind), SALCallback(consolidate_on=None, **choices), []

    def consolidate():
        callback.consolidate()
        then.append([Marks(layer) for layer in callback.layers])

    fit(model, stream(BEFORE, AFTER, heads=True), callback, At(BEFORE, consolidate))
    return model, callback, then[0]


@KINDS
def test_each_optimizer_of_a_gan_observes_its_own_weights_and_steps(kind):
    model, callback, _ = train(kind, strength=1e12, pull=0)
    for layer, name in zip(callback.layers, "GD", strict=True):
        assert set(layer.coverage()) == {f"{name}.{n}" for n, _ in getattr(model, name).named_parameters()}
    generator, discriminator = callback.layers
    assert generator.step == (BEFORE + AFTER) // 2
    assert discriminator.step == BEFORE + AFTER
    assert generator.events == [BEFORE // 2]
    assert discriminator.events == [BEFORE]


@KINDS
def test_each_optimizer_of_a_gan_observes_its_own_gradients(kind):
    """The other one's pass leaves gradients in its weights too."""
    model, callback, _ = train(kind, protection="element", strength=1e-30, pull=0, absent_prior=1)
    for layer, name in zip(callback.layers, "GD", strict=True):
        steps = layer.events[0]
        squares = [torch.zeros_like(g) for g in model.gradients[name][0]]
        for gradients in model.gradients[name][:steps]:
            squares = [0.99 * f + 0.01 * g.square() for f, g in zip(squares, gradients, strict=True)]
        mean = torch.cat([f.sqrt().flatten() for f in squares]).mean()
        expected = [f.sqrt() / mean for f in squares]
        assert furthest(layer.rules[0].memory, expected) < 1e-4


@KINDS
def test_both_networks_of_a_gan_are_protected(kind):
    model, _, marks = train(kind, strength=1e12, pull=0)
    for layer_marks in marks:
        assert len(layer_marks.rules) == 2
        assert max(layer_marks.moved()) < 1e-5
    free, _, _ = train(kind, strength=1e-30, pull=0, absent_prior=1)
    assert all(furthest(weights(a), weights(b)) > 1e-2 for a, b in ((model.G, free.G), (model.D, free.D)))


@KINDS
def test_at_no_stability_a_gan_is_trained_as_without_it_bit_for_bit(kind):
    plain = make_gan(kind)
    fit(plain, stream(BEFORE, AFTER, heads=True))
    model, callback, _ = train(kind, strength=1e-30, pull=0, absent_prior=1)
    assert all(rule.holds for layer in callback.layers for rule in layer.rules)
    assert equal(weights(model), weights(plain))


class MuonAndAdam(Net):
    """Matrices by Muon, everything else by Adam: a layer's weight and its bias belong to two optimizers."""

    def __init__(self):
        super().__init__(heads=2)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.dim() == 2]
        others = [p for p in self.parameters() if p.dim() != 2]
        return torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=5e-3)


def test_weights_of_one_optimizer_with_biases_of_another_are_both_protected():
    model, callback, then = MuonAndAdam(), SALCallback(consolidate_on=None, strength=1e9, pull=0), []

    def consolidate():
        callback.consolidate()
        then.extend([Marks(callback.layers[0]), weights(model.body), weights(model.heads[1])])

    fit(model, stream(BEFORE, AFTER, heads=True), callback, At(BEFORE, consolidate))
    marks, body, head = then
    assert [layer.step for layer in callback.layers] == [BEFORE + AFTER] * 2
    assert set(callback.coverage()) == {n for n, _ in model.named_parameters()}
    assert len(marks.rules) == 3
    assert max(marks.moved()) < 1e-5
    biases = [(a, b) for a, b in zip(weights(model.body), body, strict=True) if a.dim() == 1]
    assert max(float((a - b).norm() / b.norm()) for a, b in biases) < 1e-5
    assert furthest(weights(model.heads[1]), head) > 1e-2


def test_at_no_stability_two_optimizers_in_one_layer_train_as_without_it_bit_for_bit():
    plain, model, callback = (
        MuonAndAdam(),
        MuonAndAdam(),
        SALCallback(consolidate_on=None, strength=1e-30, pull=0, absent_prior=1),
    )
    fit(plain, stream(BEFORE, AFTER, heads=True))
    fit(model, stream(BEFORE, AFTER, heads=True), callback, At(BEFORE, callback.consolidate))
    assert callback.events == [BEFORE] * 2
    assert equal(weights(model), weights(plain))
