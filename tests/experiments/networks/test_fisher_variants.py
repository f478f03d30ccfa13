"""Each measurement of the Fisher information, against gradients of single samples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.networks import networks
from experiments.networks.fisher_variants import FISHERS, ElementwisePull, KroneckerPull, make_pull, measured
from experiments.networks.protocol import Run, known, run
from sal_lightning import CommunicationLayer

N, DRAWS = 6, 500


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, networks.CLASSES))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 5, generator=generator), torch.randint(networks.CLASSES, (N,), generator=generator)


def squares(net, loss, x, *labels):
    """Σ g² over samples, by parameter, in the mean over draws of labels."""
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for y in labels:
        for i in range(len(x)):
            grads = torch.autograd.grad(loss(net(x[i : i + 1]), y[i : i + 1]), list(net.parameters()))
            for t, g in zip(total.values(), grads, strict=True):
                t += g.square() / len(labels)
    return total


def observed(net, kind, x, y, times=DRAWS):
    """The sums of a Fisher that is shown the same batch many times; only their shares count."""
    pull = make_pull(kind, net, 1.0)
    fisher = pull.fisher
    fisher.parameters = dict(net.named_parameters())
    sums = {}
    for age in range(times):
        fisher.age = age
        z = net(x)
        (grad,) = torch.autograd.grad(F.cross_entropy(z, y), [z], retain_graph=True)
        fisher.collect(torch.autograd.graph.get_gradient_edge(z), grad, tokens=True)
        fisher.update()
        sums = {name: sums.get(name, 0) + f.matrix() for name, f in fisher.sums.items()}
        fisher.sums = {}
    return {name: f.view_as(fisher.parameters[name]) for name, f in sums.items()}


def shares(found):
    """Rows of each parameter, as shares of all."""
    total = sum(f.sum() for f in found.values())
    return torch.cat([f.reshape(len(f), -1).sum(1) for f in found.values()]) / total


@pytest.mark.slow
def test_drawn_labels_give_the_fisher_information_of_the_model(net, batch):
    """``E[g²]`` over labels from the softmax, worked out class by class."""
    x, _ = batch
    p = net(x).detach().softmax(1)
    expected = {name: torch.zeros_like(w) for name, w in net.named_parameters()}
    for label in range(networks.CLASSES):
        for i in range(N):
            grads = torch.autograd.grad(-net(x[i : i + 1]).log_softmax(1)[0, label], list(net.parameters()))
            for e, g in zip(expected.values(), grads, strict=True):
                e += p[i, label] * g.square()
    torch.testing.assert_close(shares(observed(net, "drawn", *batch)), shares(expected), atol=0.01, rtol=0.1)


@pytest.mark.slow
def test_it_is_another_than_that_of_the_labels(net, batch):
    labels = shares(squares(net, F.cross_entropy, batch[0], batch[1]))
    torch.testing.assert_close(shares(observed(net, "labels", *batch)), labels, atol=0.01, rtol=0.1)
    assert (shares(observed(net, "drawn", *batch)) - labels).abs().max() > 0.02


def test_the_square_of_the_batch_gradient_is_that_alone(net, batch):
    x, y = batch
    grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    expected = {name: g.square() for (name, _), g in zip(net.named_parameters(), grads, strict=True)}
    torch.testing.assert_close(shares(observed(net, "batch", *batch, times=1)), shares(expected))


@pytest.mark.slow
def test_elementwise_keeps_each_weight_apart(net, batch):
    expected = squares(net, F.cross_entropy, *batch)
    found = observed(net, "elementwise", *batch)
    unit = sum(e.sum() for e in expected.values()) / sum(f.sum() for f in found.values())
    name = "0.weight"
    torch.testing.assert_close(found[name] * unit, expected[name], atol=0.02 * float(expected[name].max()), rtol=0.1)


def consolidated(net, kind, batch, steps=3):
    """A layer with this pull that has learned a few steps and consolidated."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with measured(kind, net):
        layer = CommunicationLayer(net, optimizer, consolidate_on=None)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()
    layer.consolidate()
    return layer


@torch.no_grad()
def moved(net, pull, by=0.5):
    """Move all weights, then pull hard; returns what they were moved to."""
    for p in net.parameters():
        p += by * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    before = {name: p.clone() for name, p in net.named_parameters()}
    pull.begin_step()
    for name in pull.memory:
        pull.paces[name] = torch.tensor(100.0)
        pull._set_rate(name)
    pull.apply({})
    return before


def test_rows_of_absent_classes_are_not_pulled_whatever_the_measurement(net, batch):
    y = batch[1]
    absent = [c for c in range(networks.CLASSES) if c not in y.tolist()]
    for kind in FISHERS:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, networks.CLASSES))
        pull = consolidated(net, kind, batch).collector.coverage.pull
        before = moved(net, pull)
        change = (net[2].weight.detach() - before["2.weight"]).abs().sum(1)
        assert change[absent].max() < 1e-5
        assert change[y].min() > 0.01


def test_in_the_eigenbases_only_the_direction_of_a_samples_gradient_is_pulled():
    """Of one sample the gradient is ``δ xᵀ``: what moved along it goes back, what moved elsewhere stays."""
    torch.manual_seed(0)
    net = nn.Linear(5, networks.CLASSES, bias=False)
    x, y = torch.randn(1, 5), torch.tensor([3])
    pull = KroneckerPull(1.0)
    pull.fisher.parameters = dict(net.named_parameters())
    z = net(x)
    (delta,) = torch.autograd.grad(F.cross_entropy(z, y), [z], retain_graph=True)
    pull.fisher.age = 1
    pull.fisher.collect(torch.autograd.graph.get_gradient_edge(z), delta, tokens=True)
    pull.fisher.update()
    anchor = net.weight.detach().clone()
    pull.consolidate()
    net.weight.grad = torch.zeros_like(net.weight)
    then = moved(net, pull)["weight"] - anchor
    u, v = F.normalize(delta[0], dim=0), F.normalize(x[0], dim=0)
    expected = then - torch.outer(u, u) @ then @ torch.outer(v, v)
    torch.testing.assert_close(net.weight.detach() - anchor, expected, atol=2e-3, rtol=0)


@pytest.mark.slow
def test_products_are_those_of_single_samples(net, batch):
    x, y = batch
    left = torch.zeros(4, 4)
    for i in range(N):
        (g,) = torch.autograd.grad(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), [net[0].weight])
        left += g @ g.mT
    fisher = make_pull("kronecker", net, 1.0).fisher
    fisher.parameters = {"0.weight": net[0].weight}
    found = torch.zeros(4, 4)
    for age in range(DRAWS):
        fisher.clear()
        fisher.age = age
        z = net(x)
        (grad,) = torch.autograd.grad(F.cross_entropy(z, y), [z], retain_graph=True)
        fisher.collect(torch.autograd.graph.get_gradient_edge(z), grad * N, tokens=True)  # of the sum of losses
        fisher.update()
        found += fisher.products["0.weight"][0] / DRAWS
    torch.testing.assert_close(found, left, atol=0.05 * float(left.abs().max()), rtol=0.1)


def test_a_bias_counts_at_least_as_much_as_its_row(net, batch):
    pull = consolidated(net, "elementwise", batch).collector.coverage.pull
    assert isinstance(pull, ElementwisePull)
    weight, bias = (pull.memory[f"0.{which}"].importance for which in ("weight", "bias"))
    assert (bias >= weight.mean(1) * (1 - 1e-6)).all()


@pytest.mark.slow
def test_a_method_names_its_measurement_and_runs_differ():
    kept = [run(Run("mlp", "permuted", f"told:fisher={kind}", 0, "digits", 8))["kept"] for kind in FISHERS]
    assert kept[0] == run(Run("mlp", "permuted", "told", 0, "digits", 8))["kept"]
    assert len({tuple(found) for found in kept}) >= 4


@pytest.mark.parametrize("method", ["told:fisher=exact", "ewc:fisher=drawn"])
def test_an_unknown_measurement_is_refused(method):
    with pytest.raises(ValueError, match=r"fisher to be one of \('labels', .*, of sal and told, got"):
        known(method)
