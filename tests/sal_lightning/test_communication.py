import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


def task(t, n=64, seed=0):
    """Regression on inputs that live in four of twelve directions, other ones for each task."""
    generator = torch.Generator().manual_seed(1000 * t + seed)
    x = torch.zeros(n, 12)
    x[:, 4 * t : 4 * t + 4] = torch.randn(n, 4, generator=generator) + 1
    return x, x[:, 4 * t : 4 * t + 4].roll(t, 1)


def train(model, optimizer, t, steps, comm=None, start=0):
    """Trains by the seeds' two lines; returns the last loss."""
    for i in range(start, start + steps):
        x, y = task(t, seed=i)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        if comm is not None:
            comm.analyze()
            comm.protect()
        optimizer.step()
    return loss.item()


def loss(model, t):
    x, y = task(t, n=512, seed=999)
    with torch.no_grad():
        return F.mse_loss(model(x), y).item()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=5e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=2e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_lines_keep_the_first_task_under_any_optimizer_and_learn_the_second(name):
    forgotten, learned = {}, {}
    for protected in (False, True):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        comm = CommunicationLayer(model, optimizer) if protected else None
        train(model, optimizer, 0, 400, comm)
        first = loss(model, 0)
        train(model, optimizer, 1, 400, comm)
        forgotten[protected], learned[protected] = loss(model, 0) - first, loss(model, 1)
        if comm is not None:
            assert comm.events == [403]
    assert forgotten[True] < 0.35 * forgotten[False]
    assert learned[True] < 0.15  # of a variance of 1


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_on_one_stationary_task_the_loss_is_that_of_plain_training(protection):
    """Labels with noise: both must come down to its floor, also after everything was consolidated again and again."""
    reached = {}
    for on in (False, "novelty", 150):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=on) if on else None
        losses = []
        for i in range(1200):
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
        reached[on] = sum(losses[-100:]) / 100
        if on == 150:
            assert comm.events == list(range(150, 1201, 150))
        elif comm:
            assert comm.events == []
    assert reached["novelty"] == reached[False]
    assert reached[150] == pytest.approx(reached[False], rel=0.05)


def test_the_element_rule_finds_changes_and_protects_too():
    forgotten = {}
    for protected in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer, protection="element") if protected else None
        train(model, optimizer, 0, 400, comm)
        first = loss(model, 0)
        train(model, optimizer, 1, 400, comm)
        forgotten[protected] = loss(model, 0) - first
        if comm is not None:
            assert comm.events == [403]
            assert comm.spectrum().volatile < 50
    assert forgotten[True] < 0.8 * forgotten[False]


def test_without_the_optimizer_it_warns_once_and_masks_the_gradient():
    forgotten = {}
    for protected in (False, True):
        model, comm = net(), None
        if protected:
            with pytest.warns(UserWarning, match="no optimizer.*SGD") as caught:
                comm = CommunicationLayer(model)
            assert len(caught) == 1
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        train(model, optimizer, 0, 300, comm)  # any further warning is an error here
        first = loss(model, 0)
        train(model, optimizer, 1, 200, comm)
        forgotten[protected] = loss(model, 0) - first
    assert forgotten[True] < 0.5 * forgotten[False]


def test_restore_by_hand_does_what_the_hook_does():
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


def test_a_closure_gives_the_same_weights_as_a_plain_step():
    results = []
    for closed in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer)
        for i in range(60):
            x, y = task(i // 40, seed=i)

            def closure(x=x, y=y, optimizer=optimizer, model=model, comm=comm):
                optimizer.zero_grad()
                value = F.mse_loss(model(x), y)
                value.backward()
                comm.analyze()
                comm.protect()
                return value

            if closed:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_that_calls_super_step_is_restored_once():
    class Child(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # from now on torch hooks the parent's step too
    results = []
    for kind in (torch.optim.Adam, Child):
        model = net()
        optimizer = kind(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer)
        for i in range(60):
            train(model, optimizer, i // 40, 1, comm, start=i)
        results.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_first_strange_batch_is_protected_against_and_dismissed_when_it_was_alone():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    comm = CommunicationLayer(model, optimizer)
    train(model, optimizer, 0, 100, comm)
    assert not any(rule.holds for rule in comm.rules)
    before = loss(model, 0)
    train(model, optimizer, 1, 1, comm)
    assert all(rule.holds for rule in comm.rules)  # from this very batch on
    assert loss(model, 0) == pytest.approx(before, rel=0.1)
    assert comm.events == []
    train(model, optimizer, 0, 1, comm, start=100)
    assert not any(rule.holds for rule in comm.rules)
    assert comm.events == []
    train(model, optimizer, 1, 3, comm)
    assert comm.events == [105]


def test_consolidation_by_hand_and_by_the_clock():
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


def test_remember_protects_a_pretrained_model_without_labels():
    forgotten = {}
    for remembered in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        train(model, optimizer, 0, 400)
        model.train()
        comm = CommunicationLayer(model, optimizer, consolidate_on=None)
        if remembered:
            grads = [p.grad for p in model.parameters()]
            comm.remember([task(0, seed=i) for i in range(30)])
            assert model.training
            assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
            assert comm.events == [0]
        first = loss(model, 0)
        train(model, optimizer, 1, 300, comm)
        forgotten[remembered] = loss(model, 0) - first
        assert loss(model, 1) < 0.15
    assert forgotten[True] < 0.35 * forgotten[False]


def test_remember_takes_mappings_a_forward_of_ones_own_and_a_limit():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm, self.calls = nn.Linear(4, 2), nn.LayerNorm(2), 0

        def forward(self, values):
            self.calls += 1
            return {"logits": self.norm(self.layer(values))}

    model = Named()
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()), consolidate_on=None)
    comm.remember(({"values": torch.randn(8, 4)} for _ in range(100)), limit=3)
    assert model.calls == 3
    comm.remember([torch.randn(8, 4)], forward=lambda x: model(2 * x))
    assert model.calls == 4
    assert len(comm.events) == 2


def test_coverage_names_every_parameter_and_its_grain():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.conv = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1)
            self.attention, self.frozen = nn.MultiheadAttention(4, 2), nn.Linear(4, 4).requires_grad_(False)

    model = Mixed()
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()))
    coverage = comm.coverage()
    assert set(coverage) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, grain in coverage.items() if grain == "element"} == {
        "norm.weight",
        "norm.bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
    }
    for grain in ("element", "tensor"):
        comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()), protection=grain)
        assert set(comm.coverage().values()) == {grain}


def test_a_layer_used_without_being_called_is_protected_weight_by_weight():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.used = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            return F.linear(self.called(x), self.used.weight, self.used.bias)

    model = Functional()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    for _ in range(2):
        model(torch.randn(8, 4)).sum().backward()
        comm.analyze()
    coverage = comm.coverage()
    assert coverage["called.weight"] == "subspace"
    assert coverage["used.weight"] == coverage["used.bias"] == "element"
    comm.consolidate()
    again = CommunicationLayer(model, optimizer, consolidate_on=None)
    again.load_state_dict(comm.state_dict())
    assert again.coverage() == coverage
    assert again.spectrum() == comm.spectrum()


def test_memory_of_the_default_on_the_published_net_stays_below_one_and_a_half_times_its_parameters():
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
    assert memory["ratio"] == memory["state"] / memory["model"] <= 1.5
    assert memory["step"] == memory["model"]  # the copy W₀, while the optimizer steps
    assert all(rule.before is None for rule in comm.rules)


def test_states_load_under_weights_only_and_continue_exactly(tmp_path):
    """Saved in the middle of a suspicion, the hardest moment."""
    weights = []
    for split in (None, 101):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer)
        for i in range(110):
            if i == split:
                torch.save(comm.state_dict(), tmp_path / "state.pt")
                comm.detach()
                comm = CommunicationLayer(model, optimizer)
                comm.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
                assert comm._trusted is not None
            train(model, optimizer, int(i >= 100), 1, comm, start=i)
        assert comm.events == [103]
        weights.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*weights, strict=True):
        assert torch.equal(a, b)


def test_a_state_that_does_not_fit_is_refused():
    model = net()
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()))
    state = comm.state_dict()
    with pytest.raises(ValueError, match=r"version <= 2.*99"):
        comm.load_state_dict(state | {"version": 99})
    with pytest.raises(ValueError, match=r"'subspace'.*'element'"):
        comm.load_state_dict(state | {"protection": "element"})
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="same model"):
        CommunicationLayer(other, torch.optim.Adam(other.parameters())).load_state_dict(state)


def test_wrong_partners_are_refused():
    with pytest.raises(ValueError, match=r"optimizer.*own parameters of model"):
        CommunicationLayer(net(), torch.optim.Adam(net().parameters()))
    for model in (nn.ReLU(), net().requires_grad_(False)):
        with pytest.raises(ValueError, match=r"model.*require a gradient"):
            CommunicationLayer(model)


def test_only_what_the_optimizer_owns_is_covered():
    model = net()
    comm = CommunicationLayer(model, torch.optim.Adam(model[2].parameters()))
    assert set(comm.coverage()) == {"2.weight", "2.bias"}


def test_complex_weights_are_protected_weight_by_weight():
    model = nn.Linear(4, 2, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    assert set(comm.coverage().values()) == {"element"}
    for _ in range(3):
        model(torch.randn(8, 4, dtype=torch.complex64)).abs().square().mean().backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
        comm.consolidate()
    assert comm.spectrum().protected > 0


def test_steps_without_gradients_and_evaluation_are_not_observed():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer)
    comm.analyze()
    comm.protect()
    optimizer.step()
    model.eval()
    model(torch.randn(4, 12))
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 12))
    assert comm.step == 0
    assert not comm._reached


def test_detached_it_leaves_the_model_alone():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer)
    comm.detach()
    plain = copy.deepcopy(model)
    train(model, optimizer, 0, 10)
    train(plain, torch.optim.Adam(plain.parameters()), 0, 10)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not model[0]._forward_pre_hooks


def test_attention_is_protected_like_other_projections():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e5)
    past = [torch.randn(8, 5, 2) @ torch.randn(2, 12, generator=torch.Generator().manual_seed(1)) for _ in range(60)]
    for x in past:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
    comm.consolidate()
    query = lambda x: F.linear(x, model.self_attn.in_proj_weight, model.self_attn.in_proj_bias).detach()  # noqa: E731
    before, start = query(past[0]), model.self_attn.in_proj_weight.detach().clone()
    for _ in range(50):
        optimizer.zero_grad()
        (model(torch.randn(8, 5, 12)) - 1).square().mean().backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
    moved = (model.self_attn.in_proj_weight - start).norm() / start.norm()
    assert (query(past[0]) - before).norm() / before.norm() < 0.1 * moved
