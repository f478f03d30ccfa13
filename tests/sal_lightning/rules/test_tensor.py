import copy
import math

import pytest
import torch
from torch import nn

from sal_lightning.rules.tensor import Tensor


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
    rule, twin = Tensor(dict(fast.named_parameters())), Twin(list(slow.parameters()))
    steppers = [optimizer(m.parameters(), lr=0.05) for m in (fast, slow)]
    for i in range(40):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(i))
        for model in (fast, slow):
            model.zero_grad()
            (model(x).sum(1) - x.sum(1)).square().mean().backward()
        rule.observe()
        rule.mask()
        twin.analyze()
        twin.protect()
        torch.testing.assert_close(rule.s, torch.tensor(twin.s), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rule.tau, torch.tensor(twin.tau), atol=1e-5, rtol=1e-5)
        for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)
        for stepper in steppers:
            stepper.step()


def test_the_published_rule_freezes_under_sgd():
    torch.manual_seed(0)
    losses = {}
    for protect in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        rule, optimizer = Tensor(dict(model.named_parameters())), torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(200):
            x = torch.randn(32, 5, generator=torch.Generator().manual_seed(i))
            model.zero_grad()
            loss = (model(x)[:, 0] - x.sum(1)).square().mean()
            loss.backward()
            rule.observe()
            if protect:
                rule.mask()
            optimizer.step()
        losses[protect] = loss.item()
    assert losses[True] > 5 * losses[False]


def test_a_tensor_without_gradient_is_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    rule = Tensor(dict(model.named_parameters()))
    model[0](torch.ones(1, 2)).sum().backward()
    rule.observe()
    assert rule.s[2:].tolist() == [0.5, 0.5]
    assert rule.s[:2].tolist() == pytest.approx([0.65, 0.65])
