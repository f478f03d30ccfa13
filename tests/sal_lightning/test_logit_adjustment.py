import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer
from sal_lightning.logit_adjustment import LAPSE, RARE, STEADY, adjustment, targets

FREE = {"strength": 1e-9, "pull": 0.0, "recall": 0.0}  # holds next to nothing


def adjusted(z, G, absent, prior):
    change, P = adjustment(z, G, absent, prior)
    return G + change, P


def competing(G):
    return targets(G)[1]


def model(outputs=6, hidden=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def batch(seed, labels, n=24):
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels)[torch.randint(len(labels), (n,), generator=generator)]
    return torch.randn(n, 4, generator=generator) + 0.5 * torch.nn.functional.one_hot(y % 4, 4), y


def steps(some, optimizer, seeds, labels, loss=F.cross_entropy):
    for seed in seeds:
        x, y = batch(seed, labels)
        optimizer.zero_grad()
        loss(some(x), y).backward()
        optimizer.step()


def trained(prior=0.01, some=None, labels=(0, 1, 2), number=20, **options):
    some = model() if some is None else some
    optimizer = torch.optim.SGD(some.parameters(), lr=0.05)
    settings = {"consolidate_on": None, "absent_prior": prior} | FREE | options
    comm = CommunicationLayer(some, optimizer, **settings)
    steps(some, optimizer, range(number), labels)
    return some, optimizer, comm


def consolidated(*args, **options):
    some, optimizer, comm = trained(*args, **options)
    comm.consolidate()
    return some, optimizer, comm


# --- the formula ---


@pytest.mark.parametrize("prior", [1e-3, 0.1, 0.9])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum"},
        {"weight": torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1, 1.0])},
        {"ignore_index": 3},
    ],
    ids=["mean", "sum", "weights", "ignored"],
)
def test_the_gradient_is_that_of_the_loss_at_logits_with_the_prior(prior, options):
    generator = torch.Generator().manual_seed(3)
    z = (4 * torch.randn(50, 6, generator=generator)).requires_grad_()
    y = torch.randint(2, 6, (50,), generator=generator)
    absent = torch.tensor([True, True, False, False, False, False])
    (G,) = torch.autograd.grad(F.cross_entropy(z, y, **options), z)
    (expected,) = torch.autograd.grad(F.cross_entropy(z + absent * torch.tensor(prior).log(), y, **options), z)
    torch.testing.assert_close(adjusted(z.detach(), G, absent, prior)[0], expected, atol=1e-6, rtol=1e-4)


def test_each_position_of_a_sequence_is_a_row():
    z = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.full((3, 7), 4)
    absent = torch.tensor([True, False, False, False, False])
    (G,) = torch.autograd.grad(F.cross_entropy(z.flatten(0, 1), y.flatten()), z)
    shifted = z + absent * torch.tensor(0.01).log()
    (expected,) = torch.autograd.grad(F.cross_entropy(shifted.flatten(0, 1), y.flatten()), z)
    torch.testing.assert_close(adjusted(z.detach(), G, absent, 0.01)[0], expected)


def test_excluded_logits_are_left_out():
    """As where a model cuts off the outputs of classes to come."""
    z = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.full((8,), 2)
    absent = torch.tensor([True, True, False, False, False, False])
    (G,) = torch.autograd.grad(F.cross_entropy(z[:, :4], y), z)
    (expected,) = torch.autograd.grad(F.cross_entropy((z + absent * torch.tensor(0.01).log())[:, :4], y), z)
    torch.testing.assert_close(adjusted(z.detach(), G, absent, 0.01)[0], expected)


def test_a_class_is_not_absent_in_a_row_whose_target_it_is():
    z = torch.zeros(2, 3, requires_grad=True)
    y = torch.tensor([0, 1])
    (G,) = torch.autograd.grad(F.cross_entropy(z, y), z)
    found, P = adjusted(z.detach(), G, torch.tensor([True, False, False]), 0.5)
    torch.testing.assert_close(P, torch.tensor([0.0, 1 / 3]))
    assert torch.equal(found[0], G[0])
    # By hand: probabilities 1/5, 2/5, 2/5 in the second row; the mean of two samples.
    torch.testing.assert_close(found[1], torch.tensor([0.1, -0.3, 0.2]))


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits])
def test_gradients_of_other_losses_than_softmax_are_unchanged(loss):
    z = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (G,) = torch.autograd.grad(loss(z, torch.zeros(40, 4)), z)
    at, fits = targets(G)
    assert not fits
    assert (at == 4).all()


def test_a_normalisation_after_the_layer_is_no_softmax():
    """Its gradient sums to 0 in each row as well."""
    z = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (G,) = torch.autograd.grad(F.layer_norm(z, (6,)).sub(1).square()[:, :2].mean(), z)
    assert (G.sum(-1).abs() < 1e-6).all()
    assert not competing(G)


def test_smoothed_labels_count_as_a_target():
    z = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (G,) = torch.autograd.grad(F.cross_entropy(z, torch.arange(30) % 6, label_smoothing=0.1), z)
    assert competing(G)


def test_half_precision_gradients_count_as_softmax_gradients():
    z = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (G,) = torch.autograd.grad(F.cross_entropy(z, torch.arange(20)), z)
    assert competing(G)
    assert competing(G.bfloat16())
    assert competing(G.half())


def test_gradients_of_learned_samples_count_as_softmax_gradients():
    z = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    z[torch.arange(19), torch.arange(19) % 10] = 15.0  # all but one: of their gradients rounding is left
    z.requires_grad_()
    (G,) = torch.autograd.grad(F.cross_entropy(z, torch.arange(20) % 10), z)
    rows = G.sum(-1).abs() / G.abs().sum(-1)
    assert rows.max() > 1e-2
    assert competing(G)


# --- in training ---


def gradients(some, x, y):
    some.zero_grad()
    F.cross_entropy(some(x), y).backward()
    return [p.grad.clone() for p in some.parameters()]


@pytest.mark.parametrize("announced", [True, False])
def test_layers_before_the_last_get_the_adjusted_gradient_and_the_last_its_own(announced):
    some, optimizer, comm = (consolidated if announced else trained)(prior=0.01)
    twin = copy.deepcopy(some)
    x, y = batch(100, (3, 4))
    found = gradients(some, x, y)
    hidden = twin[1](twin[0](x))
    absent = torch.tensor([True, True, True, False, False, False])
    z = F.linear(hidden, twin[2].weight, twin[2].bias)
    own = torch.autograd.grad(F.cross_entropy(z, y), [twin[2].weight, twin[2].bias], retain_graph=True)
    shifted = F.cross_entropy(z + absent * torch.tensor(0.01).log(), y)
    before = torch.autograd.grad(shifted, [twin[0].weight, twin[0].bias])
    for got, expected in zip(found, [*before, *own], strict=True):
        torch.testing.assert_close(got, expected)
    assert comm.collector.coverage.adjustment.absent() == 3 * announced
    optimizer.step()
    assert set(comm.collector.coverage.adjustment.priors) == ({"2"} if announced else set())


@pytest.mark.parametrize(("number", "labels"), [(STEADY, (3, 4)), (40, (2, 3, 4)), (40, (2,))])
def test_a_batch_is_the_first_of_a_change_only_if_targets_were_steady_and_all_of_it_are_new(number, labels):
    some, _, _ = trained(number=number)
    plain = copy.deepcopy(some)
    for got, expected in zip(gradients(some, *batch(100, labels)), gradients(plain, *batch(100, labels)), strict=True):
        assert torch.equal(got, expected)


def test_gradients_are_unchanged_before_something_is_held():
    some, plain = model(), model()
    CommunicationLayer(some, torch.optim.SGD(some.parameters(), lr=0.05), consolidate_on=None, **FREE)
    for got, expected in zip(gradients(some, *batch(1, (3, 4))), gradients(plain, *batch(1, (3, 4))), strict=True):
        assert torch.equal(got, expected)


def test_returning_classes_are_no_longer_absent_after_one_step():
    some, optimizer, comm = consolidated()
    steps(some, optimizer, [50], (0, 1, 2))
    assert comm.collector.coverage.adjustment.absent() == 0
    plain = copy.deepcopy(some)
    for got, expected in zip(gradients(some, *batch(51, (0, 2))), gradients(plain, *batch(51, (0, 2))), strict=True):
        assert torch.equal(got, expected)


def absent_after(numbers, labels):
    """How many of classes 0 to 2 are absent after steps with these labels, one set for each step."""
    some, optimizer, comm = consolidated()
    found = []
    for number, some_labels in zip(numbers, labels, strict=True):
        steps(some, optimizer, [number], some_labels)
        found.append(comm.collector.coverage.adjustment.absent())
    return found


@pytest.mark.slow
def test_a_class_that_disappears_gradually_is_absent_once_it_has_not_been_seen_for_long():
    """As where the old data become fewer after the change was found: here class 0 is in every other step of 20."""
    mixed = [(0, 3) if number % 2 else (3, 4) for number in range(20)]
    found = absent_after(range(100, 100 + 20 + 2 * LAPSE), mixed + [(3, 4)] * 2 * LAPSE)
    assert found[:2] == [3, 2]
    assert set(found[1 : 19 + LAPSE + 1]) == {2}  # class 0 is not
    assert set(found[19 + LAPSE + 1 :]) == {3}


@pytest.mark.slow
def test_a_rare_class_is_not_absent_between_its_samples():
    """It comes each 16th step, and stays away for twenty times as long at the end."""
    rare = [(1, 3) if number % 16 == 15 else (3, 4) for number in range(160)]
    found = absent_after(range(100, 100 + 160 + 330), rare + [(3, 4)] * 330)
    assert set(found[15 : 160 + RARE * 16 - 1]) == {2}
    assert set(found[160 + RARE * 16 :]) == {3}


def test_the_prior_grows_while_absent_classes_have_much_of_the_probability():
    """By hand, over some steps."""
    some, optimizer, comm = consolidated()
    expected = 0.01
    for seed in range(100, 110):
        x, y = batch(seed, (3, 4))
        P = some(x).softmax(1)[:, :3].sum(1).mean().item()
        optimizer.zero_grad()
        F.cross_entropy(some(x), y).backward()
        optimizer.step()
        expected *= math.exp(0.03 * (P - 0.1))
        assert comm.collector.coverage.adjustment.priors["2"].item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.011
    comm.consolidate()
    assert comm.collector.coverage.adjustment.priors == {}


def test_micro_batches_are_equivalent_to_one_batch():
    ended = []
    for parts in (1, 4):
        some, optimizer, _ = consolidated()
        for seed in (100, 101, 102):
            x, y = batch(seed, (0, 3, 4))
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(some(a), b) / parts).backward()
            optimizer.step()
        ended.append(torch.cat([p.detach().flatten() for p in some.parameters()]))
    torch.testing.assert_close(*ended, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_regression_is_trained_as_without_the_adjustment():
    ended = []
    for prior in (0.01, 1.0):
        loss = lambda z, y: F.mse_loss(z, F.one_hot(y, 6).float())  # noqa: E731
        some = model()
        optimizer = torch.optim.SGD(some.parameters(), lr=0.05)
        comm = CommunicationLayer(some, optimizer, consolidate_on=None, absent_prior=prior)
        steps(some, optimizer, range(20), (0, 1, 2), loss)
        comm.consolidate()
        steps(some, optimizer, range(100, 140), (3, 4), loss)
        ended.append(torch.cat([p.detach().flatten() for p in some.parameters()]))
    assert torch.equal(*ended)


def test_second_derivatives_are_those_of_the_loss():
    some, _, _ = consolidated()
    twin = copy.deepcopy(some)
    x, y = batch(100, (3, 4))
    found = []
    for one in (some, twin):
        grads = torch.autograd.grad(F.cross_entropy(one(x), y), list(one.parameters()), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), list(one.parameters())))
    for got, expected in zip(*found, strict=True):
        assert torch.equal(got, expected)


def test_the_last_layer_may_share_its_input():
    """With a residual around it: only its own part of the gradient is changed."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x):
            h = self.first(x)
            return self.last(h) + h

    torch.manual_seed(0)
    some, _, _ = consolidated(some=Residual())
    twin = copy.deepcopy(some)
    x, y = batch(100, (3, 4))
    some.zero_grad()
    F.cross_entropy(some(x), y).backward()
    h = twin.first(x)
    z = (twin.last(h) + h).detach().requires_grad_()
    (G,) = torch.autograd.grad(F.cross_entropy(z, y), z)
    absent = torch.tensor([True, True, True, False, False, False])
    changed, _ = adjusted(twin.last(h).detach(), G, absent, 0.01)
    (expected,) = torch.autograd.grad(h, twin.first.weight, changed @ twin.last.weight.detach() + G)
    torch.testing.assert_close(some.first.weight.grad, expected)


def test_rows_of_classes_that_never_were_targets_are_not_pulled():
    _, _, comm = consolidated(pull=10.0)
    rows = comm.collector.coverage.pull.memory["2.weight"].rows
    assert (rows[:3] > 0).all()
    assert (rows[3:] == 0).all()
    anchor = comm.collector.coverage.pull.memory["2.weight"]
    torch.testing.assert_close(anchor.rows.sum(), anchor.columns.sum())


class Reader(nn.Module):
    """A narrow recurrent network: old and new sequences use all of its directions."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 16, batch_first=True), nn.Linear(16, 6)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def accuracies(**choices):
    """Of three old and three new classes, learned one after the other."""
    torch.manual_seed(0)
    some = Reader()
    optimizer = torch.optim.Adam(some.parameters(), lr=0.01)
    comm = CommunicationLayer(some, optimizer, consolidate_on=None, **choices)
    centres = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(1))

    def data(seed, labels, n=32):
        generator = torch.Generator().manual_seed(seed)
        y = torch.tensor(labels)[torch.randint(len(labels), (n,), generator=generator)]
        return centres[y] + torch.randn(n, 5, 3, generator=generator), y

    tasks = (0, 1, 2), (3, 4, 5)
    for number, labels in enumerate(tasks):
        for seed in range(120):
            x, y = data(1000 * number + seed, labels)
            optimizer.zero_grad()
            F.cross_entropy(some(x), y).backward()
            optimizer.step()
        if not number:
            comm.consolidate()
    tests = [data(5000 + number, labels, 500) for number, labels in enumerate(tasks)]
    return [(some(x).argmax(1) == y).float().mean().item() for x, y in tests]


@pytest.mark.slow
def test_old_classes_are_kept_and_new_ones_learned():
    without, found = accuracies(absent_prior=1), accuracies()
    assert found[0] > without[0] + 0.05
    assert found[1] > 0.85


# --- what is kept ---


def test_a_saved_state_continues():
    some, optimizer, comm = consolidated()
    steps(some, optimizer, [100], (3, 4))
    state, weights = copy.deepcopy(comm.state_dict()), copy.deepcopy(some.state_dict())
    steps(some, optimizer, range(101, 110), (3, 4))
    other = model()
    other.load_state_dict(weights)
    again = torch.optim.SGD(other.parameters(), lr=0.05)
    second = CommunicationLayer(other, again, consolidate_on=None, absent_prior=0.01, **FREE)
    second.load_state_dict(state)
    assert second.collector.coverage.adjustment.absent() == 3
    steps(other, again, range(101, 110), (3, 4))
    for a, b in zip(some.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_grown_head_keeps_its_absent_classes():
    some, _, comm = consolidated()
    larger = model(outputs=8)
    with torch.no_grad():
        larger[0].load_state_dict(some[0].state_dict())
        larger[2].weight[:6].copy_(some[2].weight)
        larger[2].bias[:6].copy_(some[2].bias)
    optimizer = torch.optim.SGD(larger.parameters(), lr=0.05)
    second = CommunicationLayer(larger, optimizer, consolidate_on=None, absent_prior=0.01, **FREE)
    second.load_state_dict(comm.state_dict())
    steps(larger, optimizer, [100], (6, 7))
    assert second.collector.coverage.adjustment.absent() == 3
    second.consolidate()
    steps(larger, optimizer, [101], (3,))
    assert second.collector.coverage.adjustment.absent() == 5
    prior = second.collector.coverage.adjustment.priors["2"]
    twin = copy.deepcopy(larger)
    x, y = batch(102, (3,))
    found = gradients(larger, x, y)
    absent = torch.tensor([True, True, True, False, False, False, True, True])
    shifted = F.cross_entropy(twin(x) + absent * prior.log(), y)
    (expected,) = torch.autograd.grad(shifted, twin[0].weight)
    torch.testing.assert_close(found[0], expected)


def test_predictions_are_recorded_as_targets_by_remember():
    some = model()
    optimizer = torch.optim.SGD(some.parameters(), lr=0.05)
    steps(some, optimizer, range(60), (0, 1, 2))
    comm = CommunicationLayer(some, optimizer, consolidate_on=None, absent_prior=0.01, **FREE)
    batches = [batch(seed, (0, 1, 2))[0] for seed in range(4)]
    comm.remember(batches)
    answers = torch.cat([some(x).argmax(1) for x in batches]).unique()
    known = comm.collector.coverage.adjustment.memory["2"]
    assert known.nonzero()[:, 0].tolist() == answers.tolist()


def test_a_dismissed_suspicion_leaves_the_memory_unchanged():
    some, optimizer, comm = consolidated()
    before = comm.collector.coverage.adjustment.memory
    steps(some, optimizer, [100], (3, 4))
    comm.monitor.provisional.consolidate()
    assert comm.collector.coverage.adjustment.memory["2"].sum() == 5
    comm.monitor.provisional.roll_back()
    assert comm.collector.coverage.adjustment.memory is before


def test_a_suspicion_may_be_dismissed_in_a_step_with_absent_classes():
    some, optimizer, comm = trained()
    comm.monitor.provisional.consolidate()
    x, y = batch(100, (3, 4))
    optimizer.zero_grad()
    F.cross_entropy(some(x), y).backward()
    assert set(comm.collector.coverage.adjustment.shares) == {"2"}
    comm.monitor.provisional.roll_back()
    optimizer.step()
    assert comm.collector.coverage.adjustment.state_dict()["priors"] == {}


def test_a_row_without_a_target_is_ignored():
    some, optimizer, comm = consolidated()
    x, y = batch(100, (3,))
    optimizer.zero_grad()
    F.cross_entropy(some(x), torch.where(torch.arange(len(y)) < 20, -100, y)).backward()
    optimizer.step()
    assert comm.collector.coverage.adjustment.absent() == 3


def test_targets_of_sequences_are_not_recorded():
    some = model()
    optimizer = torch.optim.SGD(some.parameters(), lr=0.05)
    comm = CommunicationLayer(some, optimizer, consolidate_on=None, absent_prior=0.01)
    for seed in range(3):
        x, y = batch(seed, (0, 1))
        optimizer.zero_grad()
        F.cross_entropy(some(x.view(4, 6, 4)).flatten(0, 1), y).backward()
        optimizer.step()
    comm.consolidate()
    assert comm.collector.coverage.adjustment.memory is None


def test_a_prior_of_one_keeps_no_state():
    _, _, comm = consolidated(prior=1.0)
    assert comm.collector.coverage.adjustment.memory is None
    assert comm.collector.coverage.adjustment.tensors() == []
