import warnings
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer
from tests.sal_lightning.tasks import loss, net, task, train

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=5e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=2e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_analyze_and_protect_keep_the_first_task_under_any_optimizer(name):
    forgotten, learned = {}, {}
    for protected in (False, True):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        comm = CommunicationLayer(model, optimizer) if protected else None
        train(model, optimizer, 0, 150, comm)
        first = loss(model, 0)
        train(model, optimizer, 1, 150, comm)
        forgotten[protected], learned[protected] = loss(model, 0) - first, loss(model, 1)
        if comm is not None:
            assert comm.events == [153]
    assert forgotten[True] < 0.45 * forgotten[False]
    assert learned[True] < 0.15  # of a variance of 1


def stationary(**settings):
    """The mean loss over the last steps on a task whose labels have noise, and the events; without settings, plain."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    comm = CommunicationLayer(model, optimizer, **settings) if settings else None
    losses = []
    for i in range(300):
        x, y = task(0, seed=i)
        optimizer.zero_grad()
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(10_000 + i))
        value = F.mse_loss(model(x), y + noise)
        value.backward()
        if comm:
            comm.analyze()
            comm.protect()
        optimizer.step()
        losses.append(value.item())
    return sum(losses[-100:]) / 100, comm.events if comm else []


plain = cache(stationary)


@pytest.mark.slow
@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_the_loss_on_a_stationary_task_is_that_of_plain_training(protection):
    """Labels with noise: both must reach the noise floor, also after repeated consolidations."""
    assert stationary(protection=protection, consolidate_on="novelty") == plain()
    reached, events = stationary(protection=protection, consolidate_on=60)
    assert reached == pytest.approx(plain()[0], rel=0.05)
    assert events == list(range(60, 301, 60))


@pytest.mark.slow
def test_the_element_rule_detects_changes_and_protects():
    forgotten = {}
    for protected in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer, protection="element", strength=4.0) if protected else None
        train(model, optimizer, 0, 120, comm)
        first = loss(model, 0)
        train(model, optimizer, 1, 120, comm)
        forgotten[protected] = loss(model, 0) - first
        if comm is not None:
            assert comm.events == [123]
            assert comm.spectrum().volatile < 50
    assert forgotten[True] < 0.8 * forgotten[False]


@pytest.mark.slow
def test_without_an_optimizer_the_layer_warns_once_and_masks_the_gradient():
    forgotten = {}
    for protected in (False, True):
        model, comm = net(), None
        if protected:
            with pytest.warns(UserWarning, match="no optimizer.*SGD") as caught:
                comm = CommunicationLayer(model)
            assert len(caught) == 1
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        train(model, optimizer, 0, 100, comm)  # any further warning is an error here
        first = loss(model, 0)
        train(model, optimizer, 1, 60, comm)
        forgotten[protected] = loss(model, 0) - first
    assert forgotten[True] < 0.5 * forgotten[False]


@pytest.mark.slow
def test_calling_restore_is_equivalent_to_the_hook():
    results = []
    for by_hand in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            comm = CommunicationLayer(model, None if by_hand else optimizer)
        for i in range(60):
            x, y = task(i // 40, seed=i)
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            comm.analyze()
            comm.protect()
            optimizer.step()
            if by_hand:
                comm.restore()
        assert comm.events == [43]
        results.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_consolidation_by_hand_and_every_n_steps():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    train(model, optimizer, 0, 50, comm)
    train(model, optimizer, 1, 50, comm)
    assert comm.events == []
    comm.consolidate()
    assert comm.events == [100]
    assert comm.spectrum().protected > 0
    clock = CommunicationLayer(model, optimizer, consolidate_on=20)
    train(model, optimizer, 0, 50, clock)
    assert clock.events == [20, 40]


@pytest.mark.slow
def test_memory_of_the_default_on_the_published_net_stays_below_two_and_a_half_times_its_parameters():
    model = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer, consolidate_on=20)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(128, 784, generator=generator)).square().mean().backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
    memory = comm.memory()
    assert memory["model"] == 4 * 478_410
    assert memory["ratio"] == memory["state"] / memory["model"] <= 2.5
    assert memory["step"] == 2 * memory["model"]  # W₀, while the optimizer steps, and the rates of the pull
    assert all(rule.before is None for rule in comm.rules)


def test_a_state_that_does_not_fit_is_refused():
    model = net()
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()))
    state = comm.state_dict()
    with pytest.raises(ValueError, match=r"version in \(10,\), got 99"):
        comm.load_state_dict(state | {"version": 99})
    with pytest.raises(ValueError, match=r"'subspace'.*'element'"):
        comm.load_state_dict(state | {"protection": "element"})
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="same model"):
        CommunicationLayer(other, torch.optim.Adam(other.parameters())).load_state_dict(state)
