import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer, SALCallback, summary
from sal_lightning import pull as pull_module
from sal_lightning.fisher import Factors
from sal_lightning.pull import EVERY, Anchor
from tests.sal_lightning.tasks import loss, net, task, train


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def steps(some, optimizer, seeds, factor=1.0, label=0):
    for seed in seeds:
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        (factor * F.cross_entropy(some(x), (x.argmax(1) + label) % 4)).backward()
        optimizer.step()


def consolidated(make=torch.optim.SGD, pull=3.0, factor=1.0, strength=1e-9, **options):
    some = model()
    optimizer = make(some.parameters(), **{"lr": 0.05} | options)
    comm = CommunicationLayer(
        some, optimizer, consolidate_on=None, strength=strength, pull=pull, recall=0, absent_prior=1
    )
    steps(some, optimizer, range(40), factor)
    comm.consolidate()
    return some, optimizer, comm


def test_each_step_follows_the_formula():
    """By hand, with plain SGD: its step is known, and next to nothing is held."""
    some, optimizer, comm = consolidated()
    memory = comm.collector.coverage.pull.memory
    F_ = {n: torch.outer(a.rows, a.columns).div(a.rows.sum()).view_as(a.weight) for n, a in memory.items()}
    assert sum(f.sum() for f in F_.values()) >= 44 * (1 - 1e-5)  # a mean of 1 over 44 weights; biases may have more
    mean = sum(f.sum() for f in F_.values()) / sum(f.numel() for f in F_.values())
    start = {n: a.weight.clone() for n, a in memory.items()}
    size = torch.cat([w.flatten() for w in start.values()]).norm()
    W, moved, rates = {n: w.clone() for n, w in start.items()}, None, {}
    twin = model()
    for i in range(2 * EVERY + 3):
        twin.load_state_dict(W)
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(100 + i))
        loss = F.cross_entropy(twin(x), (x.argmax(1) + 1) % 4)
        grads = dict(zip(W, torch.autograd.grad(loss, [dict(twin.named_parameters())[n] for n in W]), strict=True))
        steps(some, optimizer, [100 + i], label=1)
        if i % EVERY == 0:
            now = sum((0.05 * g).square().sum() for g in grads.values())
            moved = now if moved is None else (moved + now) / 2
            v = {n: rule.overlap() for rule in comm.collector.coverage.rules for n in rule.parameters}
            t = {n: 3.0 * v[n] * f / mean * moved.sqrt() / size for n, f in F_.items()}
            rates = {n: x / (1 + x) for n, x in t.items()}
        W = {n: w - 0.05 * grads[n] for n, w in W.items()}
        W = {n: w + rates[n] * (start[n] - w) for n, w in W.items()}
        for name, p in some.named_parameters():
            assert torch.allclose(p, W[name], atol=1e-5), (i, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.SGD, {"lr": 0.05}),
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (torch.optim.RMSprop, {"lr": 0.01}),
    ],
    ids=["SGD", "momentum", "Adam", "AdamW", "RMSprop"],
)
def test_important_weights_stay_nearer_to_their_anchor_under_any_optimizer(make, options):
    ended = {}
    for pull in (0.0, 100.0):
        some, optimizer, comm = consolidated(make, pull=pull, **options)
        start = [p.detach().clone() for p in some.parameters()]
        steps(some, optimizer, range(100, 150), label=1)
        ended[pull] = torch.cat([(p - w).abs().flatten() for p, w in zip(some.parameters(), start, strict=True)])
    importance = torch.cat(
        [comm.collector.coverage.pull.memory[n].importance.flatten() for n, _ in some.named_parameters()]
    )
    share = ended[100.0].detach() / ended[0.0].detach()
    most, least = importance.topk(12).indices, (-importance).topk(12).indices
    assert share[most].median() < 0.5
    assert share[most].median() < 0.6 * share[least].median()


@pytest.mark.slow
def test_half_the_learning_rate_over_twice_the_steps_is_about_equivalent():
    ended = []
    for rate, seeds in ((0.02, range(100, 200)), (0.01, [i for i in range(100, 200) for _ in range(2)])):
        some, _, comm = consolidated(pull=30.0)
        start = [p.detach().clone() for p in some.parameters()]
        optimizer = torch.optim.SGD(some.parameters(), lr=rate)
        state = comm.state_dict()
        comm.detach()
        other = CommunicationLayer(some, optimizer, consolidate_on=None, strength=1e-9, pull=30.0, recall=0)
        other.load_state_dict(state)
        steps(some, optimizer, seeds, label=1)
        ended.append(torch.cat([(p - w).flatten() for p, w in zip(some.parameters(), start, strict=True)]).detach())
    assert (ended[0] - ended[1]).norm() < 0.1 * ended[0].norm()


@pytest.mark.slow
def test_the_scale_of_the_loss_changes_nothing_under_adam():
    ended = []
    for factor in (1.0, 1000.0):
        some, optimizer, _ = consolidated(torch.optim.Adam, pull=30.0, factor=factor, lr=0.01, eps=1e-30)
        steps(some, optimizer, range(100, 150), factor, label=1)
        ended.append(torch.cat([p.detach().flatten() for p in some.parameters()]))
    assert torch.allclose(*ended, atol=2e-3)


def test_a_strength_of_zero_measures_keeps_and_moves_nothing():
    some, optimizer, comm = consolidated(pull=0)
    assert comm.collector.coverage.pull.memory is None
    assert comm.collector.coverage.pull.tensors() == []
    twin = model()
    twin.load_state_dict(some.state_dict())
    other = torch.optim.SGD(twin.parameters(), lr=0.05)
    steps(some, optimizer, range(100, 120))
    steps(twin, other, range(100, 120))
    for a, b in zip(some.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_parameters_without_a_gradient_are_not_pulled():
    torch.manual_seed(0)
    some = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "c": nn.Linear(3, 4), "d": nn.Linear(3, 4)})
    groups = [{"params": part.parameters(), "lr": 0.1} for part in some.values()]
    optimizer = torch.optim.SGD(groups)
    comm = CommunicationLayer(some, optimizer, consolidate_on=None, pull=1e6, strength=1e-9)

    def step(parts):
        optimizer.zero_grad()
        sum(some[part](torch.randn(8, 3)).square().mean() for part in parts).backward()
        optimizer.step()

    for _ in range(20):
        step("abcd")
    comm.consolidate()
    with torch.no_grad():
        for p in some.parameters():
            p.add_(0.1)
    for _ in range(3):
        step("abcd")  # what was set is taken as it is
    some["b"].requires_grad_(False)  # frozen
    optimizer.param_groups[2]["lr"] = 0.0  # does not move
    before = copy.deepcopy(some)
    for _ in range(EVERY + 2):
        step("abc")  # d has no gradient
    for part in "bd":
        assert torch.equal(some[part].weight, before[part].weight)
    for _ in range(EVERY + 2):
        before = some["c"].weight.clone()
        step("abcd")
    assert torch.equal(some["c"].weight, before)


def test_nothing_is_pulled_in_a_step_that_the_scaler_skips():
    some = model()
    optimizer, scaler = torch.optim.Adam(some.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=4.0)
    comm = CommunicationLayer(some, optimizer, consolidate_on=None, pull=100.0, scaler=scaler)

    def step(scale):
        x = torch.randn(16, 3)
        optimizer.zero_grad()
        scaler.scale(scale * F.cross_entropy(some(x), x.argmax(1))).backward()
        scaler.unscale_(optimizer)
        comm.analyze()
        comm.protect()
        scaler.step(optimizer)
        scaler.update()

    for i in range(40):
        step(1.0)
        if i == 20:
            comm.consolidate()
    before = [p.detach().clone() for p in some.parameters()]
    step(float("inf"))
    assert all(torch.equal(p, w) for p, w in zip(some.parameters(), before, strict=True))
    comm.restore()
    assert all(torch.equal(p, w) for p, w in zip(some.parameters(), before, strict=True))
    step(1.0)
    assert not any(torch.equal(p, w) for p, w in zip(some.parameters(), before, strict=True))


def test_a_consolidation_that_is_rolled_back_restores_the_pull():
    some, optimizer, comm = consolidated()
    before = comm.collector.coverage.pull.memory
    steps(some, optimizer, range(40, 60))
    comm.monitor.provisional.consolidate()
    assert comm.collector.coverage.pull.memory is not before
    comm.monitor.provisional.roll_back()
    assert comm.collector.coverage.pull.memory is before


@pytest.mark.slow
def test_a_saved_state_continues_bit_for_bit():
    ended = []
    for saved in (False, True):
        some, optimizer, comm = consolidated(torch.optim.Adam, lr=0.01)
        steps(some, optimizer, range(100, 107), label=1)
        if saved:
            state = comm.state_dict()
            comm.detach()
            comm = CommunicationLayer(some, optimizer, consolidate_on=None, strength=1e-9, pull=3.0, recall=0)
            comm.load_state_dict(state)
        steps(some, optimizer, range(107, 150), label=1)
        ended.append([p.detach().clone() for p in some.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True))


def test_the_new_part_of_a_grown_parameter_is_not_pulled():
    small, optimizer, comm = consolidated(pull=1e9)
    large = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6))
    with torch.no_grad():
        large[0].load_state_dict(small[0].state_dict())
        large[2].weight[:4], large[2].bias[:4] = small[2].weight, small[2].bias
    optimizer = torch.optim.SGD(large.parameters(), lr=0.05)
    other = CommunicationLayer(large, optimizer, consolidate_on=None, strength=1e-9, pull=1e9, recall=0, absent_prior=1)
    other.load_state_dict(comm.state_dict())
    before = large[2].weight.detach().clone()
    for seed in range(30):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        F.cross_entropy(large(x), torch.full((16,), 5)).backward()
        optimizer.step()
    moved = (large[2].weight.detach() - before).norm(dim=1)
    assert moved[:4].max() < 1e-3 < 0.1 < moved[5]


def test_anchors_of_frozen_parameters_are_kept_until_they_are_trainable():
    some, _, comm = consolidated(pull=1e9)
    state = comm.state_dict()
    some[0].requires_grad_(False)
    optimizer = torch.optim.SGD(some.parameters(), lr=0.05)
    other = CommunicationLayer(some, optimizer, consolidate_on=None, strength=1e-9, pull=1e9, recall=0, absent_prior=1)
    other.load_state_dict(state)
    assert set(other.collector.coverage.pull.memory) == {"2.weight", "2.bias"}
    assert set(other.state_dict()["pull"]["memory"]) == set(dict(some.named_parameters()))
    some[0].requires_grad_(True)
    steps(some, optimizer, [100])
    assert set(other.collector.coverage.pull.memory) == set(dict(some.named_parameters()))


@pytest.mark.parametrize("moved", [False, True])
def test_weights_changed_between_two_fits_become_their_anchor(moved):
    some, optimizer, comm = consolidated(pull=1e9)
    anchors = {n: a.weight.clone() for n, a in comm.collector.coverage.pull.memory.items()}
    steps(some, optimizer, range(100, 103), label=1)
    comm.detach()
    if moved:
        some[2].weight.data.add_(1.0)
    comm.begin_fit()
    now = comm.collector.coverage.pull.memory
    assert torch.equal(now["0.weight"].weight, anchors["0.weight"])
    assert torch.equal(now["2.weight"].weight, some[2].weight if moved else anchors["2.weight"])


def test_a_bias_before_a_batch_normalization_counts_as_much_as_its_weights():
    torch.manual_seed(0)
    some = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    optimizer = torch.optim.SGD(some.parameters(), lr=0.05)
    comm = CommunicationLayer(some, optimizer, consolidate_on=None)
    steps(some, optimizer, range(40))
    sums = comm.collector.coverage.pull.fisher.sums
    assert sums["0.bias"].rows.max() < 1e-6 * sums["0.weight"].rows.max()  # its gradient is rounding
    comm.consolidate()
    memory = comm.collector.coverage.pull.memory
    assert torch.allclose(memory["0.bias"].importance, memory["0.weight"].importance.mean(1), rtol=1e-4)
    assert (memory["3.bias"].importance >= memory["3.weight"].importance.mean(1) * 0.999).all()


def test_importance_is_the_mean_over_consolidations():
    some, optimizer, comm = consolidated()
    first = {n: Factors(a.rows, a.columns) for n, a in comm.collector.coverage.pull.memory.items()}
    steps(some, optimizer, range(200, 240), label=1)
    second = comm.collector.coverage.pull.fisher.relative()
    comm.consolidate()
    both = comm.collector.coverage.pull.memory["0.weight"]
    assert isinstance(both, Anchor)
    assert torch.allclose(both.rows, first["0.weight"].rows + second["0.weight"].rows)
    assert torch.equal(both.weight, some[0].weight)


@pytest.mark.slow
def test_the_pull_reduces_forgetting_at_equal_learning():
    found = {}
    for pull in (0.0, 30.0):
        some = net()
        optimizer = torch.optim.Adam(some.parameters(), lr=5e-3)
        comm = CommunicationLayer(some, optimizer, consolidate_on=None, pull=pull)
        train(some, optimizer, 0, 100, comm)
        first = loss(some, 0)
        comm.consolidate()
        train(some, optimizer, 1, 140, comm)
        found[pull] = loss(some, 0) - first, loss(some, 1)
    assert found[30.0][0] < 0.8 * found[0.0][0]
    assert found[30.0][1] < 0.01  # which is learned all the same


@pytest.mark.parametrize(("columns", "least", "most"), [(slice(0, 3), 0.8, 1.0), (slice(3, 6), 0.0, 0.2)])
def test_a_layer_is_pulled_as_far_as_present_inputs_overlap_with_past_ones(columns, least, most):
    torch.manual_seed(0)
    some = nn.Linear(6, 4, bias=False)
    optimizer = torch.optim.SGD(some.parameters(), lr=0.05)
    comm = CommunicationLayer(some, optimizer, consolidate_on=None, absent_prior=1)

    def see(where):
        for _ in range(20):
            x = torch.zeros(16, 6)
            x[:, where] = torch.randn(16, 3)
            optimizer.zero_grad()
            F.cross_entropy(some(x), x[:, where].argmax(1)).backward()
            optimizer.step()

    see(slice(0, 3))
    comm.consolidate()
    see(columns)
    (rule,), pull = comm.collector.coverage.rules, comm.collector.coverage.pull
    assert least <= rule.overlap() <= most
    assert bool(pull.paces["weight"] > 0) == (least > 0)


def test_the_layer_and_the_summary_say_how_much_is_pulled():
    some, _, comm = consolidated()
    assert comm.collector.coverage.pull.bytes == sum(p.nbytes for p in some.parameters())
    assert comm.collector.coverage.pull.problem == ""
    _, _, without = consolidated(pull=0)
    assert without.collector.coverage.pull.bytes == 0
    lines = {"over": summary._pulled([comm], comm.settings), "none": summary._pulled([without], without.settings)}
    assert lines["over"] == "100 % of the weights, towards their values at the last consolidation"
    assert lines["none"] == "nothing, since pull=0"


def test_where_parameters_are_sharded_a_warning_says_that_nothing_is_pulled(monkeypatch):
    monkeypatch.setattr(pull_module, "sharded", lambda p: True)
    some = model()
    optimizer = torch.optim.SGD(some.parameters(), lr=0.05)
    comm = CommunicationLayer(some, optimizer, consolidate_on=None)
    with pytest.warns(UserWarning, match=r"The pull is off.*several processes.*FSDP2.*pull=0"):
        steps(some, optimizer, [0])
    steps(some, optimizer, range(1, 20))  # any further warning is an error here
    comm.consolidate()
    assert not comm.collector.coverage.pull.holds
    assert "could not be measured (the parameters are sharded" in summary._pulled([comm], comm.settings)


def test_the_callback_validates_the_strength():
    assert SALCallback(pull=3).settings.pull == 3
    with pytest.raises(ValueError, match=r"pull to be a number >= 0, got -1"):
        SALCallback(pull=-1)


def test_remembering_measures_without_labels():
    some = net()
    optimizer = torch.optim.Adam(some.parameters(), lr=5e-3)
    comm = CommunicationLayer(some, optimizer, consolidate_on=None, pull=10.0)
    comm.remember([task(0, seed=i)[0] for i in range(4)])
    found = comm.collector.coverage.pull.memory
    assert found is not None
    assert set(found) == set(dict(some.named_parameters()))
    assert all(torch.equal(found[n].weight, p) for n, p in some.named_parameters())
