import math

import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer
from sal_lightning.rules.demand import Demand
from tests.sal_lightning.rules.subspaces import inputs, make, show


def see(demand, sizes, batches=1, needed=0.0):
    for g in sizes:
        demand.update(torch.tensor(float(g) ** 2), batches)
        demand.measure(torch.tensor([needed]))
    return float(demand.q)


def twin(sizes, beta):
    """The formula over the whole history, plainly."""

    def root_mean(values):
        weights = [beta ** (len(values) - 1 - i) for i in range(len(values))]
        return math.sqrt(sum(w * v**2 for w, v in zip(weights, values, strict=True)) / sum(weights))

    means = [root_mean(sizes[: i + 1]) for i in range(len(sizes))]
    return means[-1] / max(means)


def test_without_data_the_demand_is_one():
    demand = Demand(0.9)
    assert demand.q == 1
    demand.measure(torch.tensor([0.1]))
    assert demand.q == 1


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_formula_over_the_whole_history(seed):
    sizes = (0.5 + torch.rand(40, generator=torch.Generator().manual_seed(seed))).tolist()
    assert see(Demand(0.9), sizes) == pytest.approx(twin(sizes, 0.9), rel=1e-4)


def test_it_falls_as_the_gradient_does_and_rises_again():
    sizes = [1] * 20 + [0.05] * 300
    assert see(Demand(0.9), sizes) == pytest.approx(0.05, rel=1e-3)
    assert see(Demand(0.9), [*sizes, *[1] * 100]) == pytest.approx(1, rel=1e-3)


def test_the_demand_is_one_while_the_gradient_grows():
    assert see(Demand(0.9), range(1, 100)) == 1


def test_one_update_for_several_batches_has_their_weight():
    once, often = Demand(0.9), Demand(0.9)
    see(often, [1] * 3 + [0.2] * 4)
    see(once, [1], batches=3)
    see(once, [0.2], batches=4)
    assert once.q == pytest.approx(often.q.item(), rel=1e-5)


def test_one_wild_gradient_does_not_stop_what_follows():
    assert see(Demand(0.99), [1] * 50 + [1000] + [1] * 500) > 0.8
    assert see(Demand(0.99**16), [1] * 50 + [1000] + [1] * 500) > 0.5


def test_a_lasting_increase_of_the_gradient_raises_its_maximum():
    demand = Demand(0.9)
    see(demand, [1] * 50 + [1000] * 100)
    assert demand.most.sqrt() == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_overflowed_counts_as_zero(bad):
    good, demand = Demand(0.9), Demand(0.9)
    assert see(demand, [1, bad, 1]) == see(good, [1, 0, 1])


def test_a_gradient_that_vanished_asks_for_nothing_but_where_only_present_data_lies():
    sizes = [1] + [0] * 100
    assert see(Demand(0.5), sizes) < 1e-6
    assert see(Demand(0.5), sizes, needed=0.49) == pytest.approx(0.7)
    assert see(Demand(0.5), [1], needed=0.49) == 1


@pytest.mark.parametrize(("outside", "q"), [(0.81, 0.9), (5.0, 1.0), (0.0, 0.25)])
def test_data_that_lies_outside_what_is_held_is_asked_for_though_its_gradient_vanished(outside, q):
    rule = make(nn.Linear(10, 6, bias=False))
    show(rule, inputs(10))
    rule.consolidate()
    see(rule.demand, [1] + [0] * 1000)
    rule.window.outside = lambda k: torch.tensor([outside])
    rule.adapt_hold()
    assert rule.demand.q == pytest.approx(q)


def test_state_continues_exactly():
    sizes = [0.9**i for i in range(20)]
    whole, first, second = Demand(0.9), Demand(0.9), Demand(0.9)
    see(whole, sizes)
    see(first, sizes[:10])
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    assert second.q == first.q
    assert see(second, sizes[10:]) == whole.q


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 0.0, 0.5), (10.0, 0.7, 1.0)])
def test_it_falls_where_present_data_can_be_learned(noise, least, most):
    torch.manual_seed(0)
    model, known = nn.Linear(8, 4), torch.tensor([1.0] * 2 + [0.01] * 6)
    goal = torch.where(known == 1, model.weight.detach(), torch.randn(4, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=4.0, pull=0)
    comm.remember([torch.randn(64, 8) * known])
    for _ in range(250):
        x = torch.randn(64, 8) * torch.tensor([1.0] * 2 + [0.3] * 6)
        optimizer.zero_grad()
        (model(x) - x @ goal.T - noise * torch.randn(64, 4)).square().mean().backward()
        optimizer.step()
    (rule,) = comm.rules
    assert least <= rule.demand.q <= most
