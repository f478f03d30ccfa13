import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sal_lightning.rules.tensor import TensorRule


class Twin:
    """The published rule, tensor by tensor and number by number."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.previous = [p.detach().clone() for p in parameters]
        self.s, self.tau = [0.5] * len(parameters), 0.5

    def analyze(self):
        norms = []
        for i, p in enumerate(self.parameters):
            moved = math.sqrt(sum(float(v) ** 2 for v in (p.detach() - self.previous[i]).flatten()))
            norms.append(math.sqrt(sum(float(v) ** 2 for v in p.grad.flatten())))
            self.s[i] = 0.3 / (1 + moved * norms[-1] + 1e-8) + 0.7 * self.s[i]
            self.previous[i] = p.detach().clone()
        mean = sum(norms) / len(norms)
        if mean >= 1e-8:
            deviation = math.sqrt(sum((n - mean) ** 2 for n in norms) / len(norms))
            self.tau = min(max(0.5 + 0.1 * deviation / (mean + 1e-8), 0.1), 0.9)

    def protect(self):
        for p, s in zip(self.parameters, self.s, strict=True):
            if s > self.tau:
                p.grad = p.grad * (1 - s)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam], ids=lambda o: o.__name__)
def test_the_rule_matches_the_published_formula_on_one_gradient_stream(optimizer):
    torch.manual_seed(0)
    fast = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    slow = copy.deepcopy(fast)
    rule, twin = TensorRule(dict(fast.named_parameters())), Twin(list(slow.parameters()))
    steppers = [optimizer(m.parameters(), lr=0.05) for m in (fast, slow)]
    for i in range(40):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(i))
        for model in (fast, slow):
            model.zero_grad()
            (model(x).sum(1) - x.sum(1)).square().mean().backward()
        rule.update()
        rule.mask()
        twin.analyze()
        twin.protect()
        torch.testing.assert_close(rule.s, torch.tensor(twin.s), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rule.tau, torch.tensor(twin.tau), atol=1e-5, rtol=1e-5)
        for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)
        for stepper in steppers:
            stepper.step()


@pytest.mark.slow
def test_the_published_rule_freezes_under_sgd():
    torch.manual_seed(0)
    losses = {}
    for protect in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        rule, optimizer = TensorRule(dict(model.named_parameters())), torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(200):
            x = torch.randn(32, 5, generator=torch.Generator().manual_seed(i))
            model.zero_grad()
            loss = (model(x)[:, 0] - x.sum(1)).square().mean()
            loss.backward()
            rule.update()
            if protect:
                rule.mask()
            optimizer.step()
        losses[protect] = loss.item()
    assert losses[True] > 5 * losses[False]


def test_a_tensor_without_gradient_is_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    rule = TensorRule(dict(model.named_parameters()))
    model[0](torch.ones(1, 2)).sum().backward()
    rule.update()
    assert rule.s[2:].tolist() == [0.5, 0.5]
    assert rule.s[:2].tolist() == pytest.approx([0.65, 0.65])


def pushed(size, optimizer, steps, protect=True):
    """The lengths of a tensor's steps under a gradient that is always the same, and the rule."""
    w = nn.Parameter(torch.zeros(100))
    rule, optimizer = TensorRule({"w": w}), optimizer([w])
    lengths = []
    for _ in range(steps):
        w.grad = torch.full_like(w, size / 10)  # of norm ``size``
        rule.update()
        if protect:
            rule.mask()
        before = w.detach().clone()
        optimizer.step()
        lengths.append((w.detach() - before).norm().item())
    return lengths, rule


def test_under_sgd_a_steady_gradient_moves_a_tensor_by_less_than_a_few_plain_steps_for_ever():
    rate, size = 0.1, 2.0
    a = rate * size**2
    lengths, rule = pushed(size, lambda w: torch.optim.SGD(w, lr=rate), 400)
    assert sum(lengths) < 1.7 / (1 - a) * rate * size
    assert sum(lengths[50:]) < 1e-3 * rate * size
    assert rule.s.item() == pytest.approx(1, abs=1e-6)
    ratios = [after / before for before, after in pairwise(lengths[:30])]
    assert max(ratios) < 0.7 + 0.3 * a + 1e-3


@pytest.mark.parametrize("a", [1.3, 1.7])
def test_under_sgd_a_larger_gradient_moves_it_on_at_a_score_of_one_over_a(a):
    lengths, rule = pushed((a / 0.1) ** 0.5, lambda w: torch.optim.SGD(w, lr=0.1), 400)
    assert rule.s.item() == pytest.approx(1 / a, abs=1e-3)
    assert lengths[-1] == pytest.approx((1 - 1 / a) * (0.1 * a) ** 0.5, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_where_the_gradient_is_divided_by_its_size_its_mask_cancels_but_for_tensors_of_short_steps(kind):
    ways = {}
    for rate, size in ((0.1, 0.5), (1e-3, 0.05)):
        runs = [pushed(size, lambda w, lr=rate: kind(w, lr=lr), 300, protect) for protect in (False, True)]
        (plain, _), (masked, rule) = runs
        ways[rate] = sum(masked[200:]) / sum(plain[200:])
        # The score of a tensor that makes the optimizer's whole step, and of one that makes none.
        stepped = 1 / (1 + 10 * rate * size)
        assert rule.s.item() == pytest.approx(stepped if rate == 0.1 else 1, abs=0.02)
    assert ways[0.1] == pytest.approx(1, abs=0.05)
    assert ways[1e-3] < 0.1


def test_of_its_past_three_percent_are_left_after_ten_steps():
    rules = []
    for start in (0.0, 1.0):
        w = nn.Parameter(torch.zeros(4))
        rule = TensorRule({"w": w})
        rule.s.fill_(start)
        for _ in range(10):
            w.grad = torch.ones_like(w)
            rule.update()
        rules.append(rule)
    assert (rules[1].s - rules[0].s).item() == pytest.approx(0.7**10, rel=1e-4) == pytest.approx(0.028, abs=1e-3)
