import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

from sal_lightning import CommunicationLayer
from sal_lightning.fisher import EVERY, FIRST, Factors, Fisher


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def measured(net, x, loss, draws, scale=None, tokens=False):
    """The mean over many draws of signs, as one unfactored tensor per parameter."""
    fisher, sums = Fisher(), {}
    fisher.parameters = dict(net.named_parameters())
    for fisher.age in range(draws):
        out = net(x)
        (grad,) = torch.autograd.grad(loss(out), out, retain_graph=True)
        fisher.collect(get_gradient_edge(out), grad, scale, tokens)
        sums.update({n: sums.get(n, 0) + g.square() / draws for n, g in fisher.seen.items()})
        fisher.discard_step()
    return sums


def by_samples(net, x, loss_of_one):
    """Sum of the squared gradients of single samples, computed one by one."""
    total = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for one in range(len(x)):
        grads = torch.autograd.grad(loss_of_one(net(x[one : one + 1]), one), list(net.parameters()))
        total = {n: t + g.square() for (n, t), g in zip(total.items(), grads, strict=True)}
    return total


def close(found, expected):
    for name, x in expected.items():
        assert (found[name] - x).norm() < 0.1 * x.norm(), name


@pytest.mark.slow
def test_random_signs_give_the_sum_of_squared_gradients_of_samples():
    net, x, y = small(), torch.randn(16, 3), torch.arange(16) % 4
    found = measured(net, x, lambda out: F.cross_entropy(out, y, reduction="sum"), draws=2000)
    close(found, by_samples(net, x, lambda out, i: F.cross_entropy(out, y[i : i + 1])))
    batch = torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), net[0].weight)[0].square()
    assert (batch - found["0.weight"]).norm() > 0.3 * batch.norm()  # the gradient of the batch is something else


@pytest.mark.slow
def test_each_position_of_a_sequence_is_a_sample():
    net, x, y = small(), torch.randn(4, 6, 3), torch.arange(24).reshape(4, 6) % 4
    loss = lambda out: F.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="sum")  # noqa: E731
    found = measured(net, x, loss, draws=2000, tokens=True)
    close(found, by_samples(net, x.flatten(0, 1), lambda out, i: F.cross_entropy(out, y.flatten()[i : i + 1])))


def test_the_loss_scale_is_divided_out():
    net, x = small(), torch.randn(16, 3)
    plain = measured(net, x, lambda out: out.square().sum(), draws=3)
    scaled = measured(net, x, lambda out: 1024 * out.square().sum(), draws=3, scale=torch.tensor(1024.0))
    for name in plain:
        assert torch.allclose(plain[name], scaled[name], rtol=1e-5)


def test_factors_have_the_sums_of_the_matrix_and_are_it_where_it_has_rank_one():
    torch.manual_seed(0)
    x = torch.rand(3, 4, 5)
    found = Factors.of(x).matrix()
    assert torch.allclose(found.sum(1), x.sum((1, 2)))
    assert torch.allclose(found.sum(0), x.sum(0).flatten())
    outer = torch.outer(torch.rand(3), torch.rand(4))
    assert torch.allclose(Factors.of(outer).matrix(), outer)
    assert torch.equal(Factors.of(torch.zeros(2, 2)).matrix(), torch.zeros(2, 2))
    assert torch.allclose(Factors.of(v := torch.rand(5)).matrix()[:, 0], v)


def trained(pull, steps=40, net=None, run=None):
    net = net or small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    comm = CommunicationLayer(net, optimizer, consolidate_on=None, pull=pull)
    generator, grads = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        x = torch.randn(32, 3, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy((run or net)(x), x.argmax(1)).backward()
        grads.append([p.grad.clone() for p in net.parameters()])
        optimizer.step()
    return comm, grads


def test_the_fisher_is_measured_in_few_steps_and_changes_no_gradient():
    seen = []
    comm, with_it = trained(1.0)
    without, plain = trained(0)
    assert without.state_dict()["pull"]["fisher"]["sums"] == {}
    for a, b in zip(with_it, plain, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    fisher = comm.collector.coverage.pull.fisher
    for fisher.age in range(100):
        seen += [fisher.age] if fisher.due else []
    assert seen == [*FIRST, EVERY - 1, 2 * EVERY - 1, 3 * EVERY - 1]


def test_the_mean_over_all_weights_is_one_whatever_the_scale_of_the_loss():
    found = []
    for factor in (1.0, 100.0):
        fisher, net = Fisher(), small()
        fisher.parameters = dict(net.named_parameters())
        for fisher.age in range(3):
            out = net(torch.ones(8, 3))
            fisher.collect(get_gradient_edge(out), factor * out.detach())
            fisher.update()
        relative = fisher.relative()
        assert sum(f.rows.sum() for f in relative.values()) == pytest.approx(sum(p.numel() for p in net.parameters()))
        found.append(relative["0.weight"].matrix())
    assert torch.allclose(*found, rtol=1e-4)


def test_the_graph_of_a_step_is_freed():
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    comm = CommunicationLayer(net, optimizer, consolidate_on=None)
    nodes = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            out = net(torch.randn(4, 3))
            nodes.append(weakref.ref(out))
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
            del out
        assert comm.collector.coverage.pull.fisher.sums
        assert not comm.collector.output._edges
        assert [node() for node in nodes] == [None] * 10
    finally:
        gc.enable()


def test_a_failed_measurement_warns_once_and_training_continues():
    net = small()

    def run(x):
        return checkpoint(net, x.requires_grad_(), use_reentrant=True)

    comm, grads = trained(1.0, net=net, run=run)
    comm.consolidate()

    def step():
        comm.optimizer.zero_grad()
        run(torch.randn(8, 3)).square().mean().backward()
        comm.optimizer.step()

    with pytest.warns(UserWarning, match=r"The pull is off.*use_reentrant=False.*pull=0"):
        step()
    step()  # any further warning is an error here
    assert len(grads) == 40
    assert not comm.collector.coverage.pull.holds
    assert comm.spectrum().volatile < 100  # the hold is what it was


def test_the_fisher_is_measured_under_non_reentrant_checkpointing():
    net = small()
    comm, grads = trained(1.0, net=net, run=lambda x: checkpoint(net, x, use_reentrant=False))
    plain, expected = trained(1.0)
    for a, b in zip(grads, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    found, wanted = comm.collector.coverage.pull.fisher.sums, plain.collector.coverage.pull.fisher.sums
    assert torch.allclose(found["0.weight"].rows, wanted["0.weight"].rows)
