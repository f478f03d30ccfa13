import pytest
import torch
from torch import nn

from sal_lightning.input_sketch import InputSketch
from sal_lightning.rules import firmness, input_rule
from tests.sal_lightning.rules.subspaces import inputs, make, show


def test_directions_held_hardly_firmer_than_the_rest_count_as_the_rest_and_others_fade_in():
    rule = make(nn.Linear(40, 6, bias=False), strength=1.0)
    rule.window = InputSketch(40, 40, input_rule.BETA)
    rule.window.update(torch.diag(torch.linspace(1, 1.6, 40).sqrt())[None])
    rule.rank = 30
    rule.consolidate()
    lam = torch.linspace(1.6, 1, 40) * 40 / torch.linspace(1, 1.6, 40).sum()
    passes = lambda energy, strength=1.0: 1 / (strength * energy + 1)  # noqa: E731
    # The weakest that passes less than 95 % of what it and all weaker ones pass on average, once held most firmly.
    for k in range(30, 0, -1):
        if passes(lam[k - 1], firmness.MOST) < (1 - firmness.GAP) * passes(lam[k - 1 :].mean(), firmness.MOST):
            break
    assert 1 < k <= 30
    assert rule.memory.E.shape == (1, 6, k)
    # While new data uses the rest as much as the mean of all directions, it is fully open.
    for need, alpha in ((None, firmness.LEAST), (10.0, 1.0), (0.5, 0.5)):
        if need:
            rule.window.outside = lambda k, need=need: torch.tensor([need])
            rule.adapt_hold()
        s_rest = lam[k:].mean() / (lam[k:].mean() + alpha)
        torch.testing.assert_close(rule.memory.s_rest, s_rest[None], atol=1e-5, rtol=1e-5)
    rule.window.outside = lambda k: torch.tensor([1.0])
    rule.adapt_hold()
    expected = (1 - passes(lam[:k]) / passes(lam[k:].mean()) / (1 - firmness.GAP)).clamp(min=0)
    assert 0 < int((expected > 0).sum()) < k
    held = (rule.memory.s[0] - rule.memory.s_rest[0]) / (1 - rule.memory.s_rest[0])
    torch.testing.assert_close(held, expected, atol=1e-4, rtol=1e-4)


def test_the_rest_opens_as_far_as_new_data_needs_it():
    torch.manual_seed(0)
    x = torch.randn(64, 12) * torch.tensor([3.0] * 4 + [0.3] * 8)
    opened = []
    for new in (x, x.flip(1)):
        rule = make(nn.Linear(12, 4, bias=False))
        rule.rank = 4
        show(rule, x)
        rule.consolidate()
        rule.clear()
        shut = rule.memory.s_rest
        rule.collect((new,), 0)
        rule.update()
        rule.age = 0  # it is held as firmly as at first
        rule.adapt_hold()
        U, outside = rule.memory.U[0], rule.window.outside(4)
        inside = (new @ U).square().sum(1).mean()
        torch.testing.assert_close(
            outside[0], (new.square().sum(1).mean() - inside) / new.square().mean() / 12 * 12 / 8
        )
        opened.append(float(shut - rule.memory.s_rest))
    assert opened[0] == pytest.approx(0, abs=1e-6)
    assert opened[1] > 0.1


def test_what_is_held_firms_with_the_steps_and_a_consolidation_begins_anew():
    rule = make(nn.Linear(10, 6), strength=0.25)
    show(rule, inputs(10))
    rule.consolidate()
    rule.clear()
    rule.window.outside = lambda k: torch.tensor([1.0])
    lam, held = rule.memory.directions.lam[0], []
    for age, strength in ((0, 0.25), (250, 0.375), (1000, 0.75), (3500, 2.0), (10**6, 2.0)):
        show(rule, inputs(10))
        rule.age = age
        rule.adapt_hold()
        s, s_rest = rule.memory.s[0], rule.memory.s_rest[0]
        k = len(s)
        f = ((lam[:k] / (lam[:k] + 1 / strength) - s_rest) / (1 - s_rest) - firmness.GAP) / (1 - firmness.GAP)
        torch.testing.assert_close((s - s_rest) / (1 - s_rest), f.clamp(min=0), atol=1e-5, rtol=1e-5)
        held.append(s)
    assert held[0].max() < held[1].max() < held[2].max() < held[3].max() == held[4].max()
    rule.age = 0
    rule.adapt_hold()
    torch.testing.assert_close(rule.memory.s[0], held[0])


def test_stability_stays_below_one_after_many_consolidations():
    rule = make(nn.Linear(10, 6))
    show(rule, inputs(10))
    for _ in range(50):
        rule.consolidate()
    assert (rule.memory.s < 1).all()
