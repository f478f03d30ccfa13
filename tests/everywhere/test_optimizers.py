import math
from functools import cache

import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.rules import firmness, subspace
from tests.everywhere.common import (
    AFTER,
    BEFORE,
    PART,
    ROWS,
    WIDTH,
    At,
    Child,
    Marks,
    Net,
    adam,
    distance,
    equal,
    fit,
    furthest,
    matrix,
    sgd,
    stream,
    weights,
)

pytestmark = pytest.mark.slow


def child(parameters):
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    return Child(parameters, lr=5e-3)


OPTIMIZERS = {
    "sgd": sgd,
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": adam,
    "adamw": lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=0.1),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=2e-3, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.02, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=2e-3, decoupled_weight_decay=True, weight_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=5e-3, decoupled_weight_decay=True, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=2, history_size=10, line_search_fn="strong_wolfe"),
    "step calls super": child,
    "muon": lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1),
}
# Clipping runs before the optimizer, so four kinds suffice: stateless, with state, with a closure, its own step().
CLIPPED = ["sgd", "adamw", "lbfgs", "step calls super"]
RUNS = pytest.mark.parametrize(
    ("name", "clip"), [*((name, None) for name in OPTIMIZERS), *((name, 0.1) for name in CLIPPED)], ids=str
)


def net(name):
    """Each task trains a head of its own: nothing holds the second when the first task ends."""
    return Net(OPTIMIZERS[name], heads=2, bias=name != "muon")


def data():
    return stream(BEFORE, AFTER, heads=True)


@cache
def plain(name, clip):
    model = net(name)
    fit(model, data(), gradient_clip_val=clip)
    return weights(model)


def protected(name, clip, strength):
    """Trained with what the first task used held from its last step on; what is held, and the weights at that step."""
    model, callback, then = net(name), SALCallback(consolidate_on=None, strength=strength, pull=0), []

    def consolidate():
        callback.consolidate()
        then.extend([Marks(callback.layers[0]), weights(model.heads[1])])

    fit(model, data(), callback, At(BEFORE, consolidate), gradient_clip_val=clip)
    assert callback.events == [BEFORE]
    assert callback.layers[0].step == BEFORE + AFTER
    return model, *then


@RUNS
def test_at_full_stability_what_is_held_stays_and_the_rest_learns(name, clip):
    model, marks, free = protected(name, clip, strength=1e9)
    assert len(marks.rules) == 3
    assert max(marks.moved()) < 1e-5
    assert furthest(weights(model.heads[1]), free) > 1e-3


@RUNS
def test_at_no_stability_the_run_is_the_plain_one_bit_for_bit(name, clip):
    model, marks, _ = protected(name, clip, strength=1e-30)
    assert all(rule.holds for rule in marks.rules)
    assert equal(weights(model), plain(name, clip))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_protection_the_same_directions_do_move(name):
    """So that the test of full stability can fail."""
    _, marks, _ = protected(name, None, strength=1e-30)
    for rule in marks.rules:
        rule.memory = rule.memory._replace(f=torch.ones_like(rule.memory.f))
    assert max(marks.moved()) > 0.01


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_inputs_never_seen_stay_free_however_firmly_the_others_are_held(name):
    """Single precision knows the energy of a direction to a share of 1e-7: the strength is that much below its end."""
    new, columns = slice(PART, 2 * PART), []
    model, plain = net(name), net(name)
    callback = SALCallback(consolidate_on=None, strength=1e4, pull=0)

    def look(m):
        columns.append(m.body[0].weight.detach()[:, new].clone())

    fit(model, data(), callback, At(BEFORE, lambda: (callback.consolidate(), look(model))))
    fit(plain, data(), At(BEFORE, lambda: look(plain)))
    look(model)
    look(plain)
    assert distance(columns[:1], columns[2:3]) > 0.5 * distance(columns[1:2], columns[3:])


@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradient_and_update_are_each_held_back_once(clip, monkeypatch):
    """``W ← W₀ − lr·clip(G (1 − S))·(1 − S)``, written out in double precision for one layer.

    So wide that not all of its directions are kept, and the rest is held at its mean.
    """
    monkeypatch.setattr(subspace, "SETTLE", 1)
    monkeypatch.setattr(subspace, "LEAST", 1.0)  # what is held stays the same, whatever present data asks
    monkeypatch.setattr(subspace, "MASK", 16)
    monkeypatch.setattr(firmness, "PACE", math.inf)
    torch.manual_seed(0)
    wide = 40
    model = nn.Linear(wide, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=4.0, recall=0.0, pull=0)
    batches = [(torch.randn(ROWS, wide) + 0.1 * torch.arange(wide), torch.randn(ROWS, 3)) for _ in range(60)]

    def step(x, y):
        optimizer.zero_grad()
        (model(x / 4) - y).square().mean().backward()
        comm.analyze()
        comm.protect()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    for x, y in batches[:20]:
        step(x, y)
    comm.consolidate()
    (rule,) = comm.rules
    W, memory = matrix(rule), rule.memory
    for x, y in batches[20:]:
        step(x, y)

    U, s, rest = (t[0].double() for t in (memory.U, memory.s, memory.s_rest))
    eye = torch.eye(wide + 1, dtype=torch.double)
    pass_on = eye - (U * s) @ U.T - rest * (eye - U @ U.T)
    mask = eye - (U * (s - rest) / (1 - rest))[:, : subspace.MASK] @ U[:, : subspace.MASK].T
    assert U.shape[1] > subspace.MASK
    assert 0.01 < rest < 0.9
    for x, y in batches[20:]:
        x1 = torch.cat([x / 4, torch.ones(ROWS, 1)], 1).double()
        G = 2 * (x1 @ W.T - y).T @ x1 / y.numel() @ mask
        G = G * min(1.0, clip / float(G.norm())) if clip else G
        W = W - 0.05 * G @ pass_on
    assert furthest([matrix(rule)], [W]) < 1e-6


@pytest.mark.parametrize("clip", [None, 0.05])
def test_single_weights_are_held_back_once_in_gradient_and_update(clip):
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comm = CommunicationLayer(model, optimizer, protection="element", consolidate_on=None, pull=0)
    W = s = None
    for i, (x, _, *_) in enumerate(stream(20, 40)):
        if i == 20:
            comm.consolidate()
            s = torch.cat([o.double().reshape(3, -1) for o in comm.rules[0].memory], 1)
            s = s / (s + 1 / comm.settings.strength)
            W = torch.cat([model.weight, model.bias[:, None]], 1).detach().double()
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        comm.analyze()
        comm.protect()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if W is not None:
            x1 = torch.cat([x, torch.ones(ROWS, 1)], 1).double()
            G = 2 * (x1 @ W.T - 1).T @ x1 / (3 * ROWS) * (1 - s)
            G = G * min(1.0, clip / float(G.norm())) if clip else G
            W = W - 0.1 * G * (1 - s)
    assert s.max() > 0.5
    assert distance([torch.cat([model.weight, model.bias[:, None]], 1).detach()], [W]) < 1e-6


@pytest.mark.parametrize("recall", [0.0, 0.5])
def test_a_child_optimizer_is_restored_as_often_as_its_parent(recall):
    results = []
    for make in (adam, child):
        model, callback = Net(make, heads=2), SALCallback(consolidate_on=None, recall=recall)
        fit(model, data(), callback, At(BEFORE, callback.consolidate))
        results.append(weights(model))
    assert equal(*results)
