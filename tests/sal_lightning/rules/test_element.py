import torch
from torch import nn

from sal_lightning.rules.element import ElementRule
from sal_lightning.rules.input_rule import BETA


def backward(model, seed):
    model.zero_grad()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()


def test_importance_is_the_root_of_the_mean_squared_gradient_scaled_over_all_weights():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    rule = ElementRule(dict(model.named_parameters()), strength=4.0)
    F = torch.zeros(15)
    for seed in range(20):
        backward(model, seed)
        rule.update()
        F = BETA * F + (1 - BETA) * torch.cat([p.grad.flatten() for p in model.parameters()]) ** 2
    rule.consolidate()
    omega = F.sqrt() / F.sqrt().mean()
    torch.testing.assert_close(torch.cat([o.flatten() for o in rule.memory]), omega)
    rule.consolidate()
    torch.testing.assert_close(torch.cat([o.flatten() for o in rule.memory]), 2 * omega)
    s = 2 * omega / (2 * omega + 0.25)
    held = rule.held([torch.ones_like(p) for p in model.parameters()])
    torch.testing.assert_close(torch.cat([h.flatten() for h in held]), s)


def test_the_update_is_scaled_under_adam():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    rule = ElementRule(dict(model.named_parameters()), strength=4.0)
    backward(model, 0)
    rule.update()
    rule.consolidate()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    rule.snapshot()
    optimizer.step()
    full = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    rule.restore()
    for p, b, d, o in zip(model.parameters(), before, full, rule.memory, strict=True):
        torch.testing.assert_close(p.detach() - b, d * 0.25 / (o + 0.25), atol=1e-6, rtol=1e-4)


def test_importance_does_not_depend_on_the_size_of_the_gradients():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    omegas = []
    for scale in (1e-3, 1e3):
        rule = ElementRule(dict(model.named_parameters()), strength=4.0)
        backward(model, 0)
        for p in model.parameters():
            p.grad.mul_(scale)
        rule.update()
        rule.consolidate()
        omegas.append(torch.cat([o.flatten() for o in rule.memory]))
    torch.testing.assert_close(*omegas, atol=1e-5, rtol=1e-3)


def test_adopted_parameters_start_free():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    rule = ElementRule(dict(model[0].named_parameters(prefix="0")), strength=4.0)
    backward(model, 0)
    rule.update()
    rule.consolidate()
    rule.adopt(dict(model[1].named_parameters(prefix="1")))
    assert [float(o.sum()) for o in rule.memory[2:]] == [0.0, 0.0]
    assert rule.bands().sum() == sum(p.numel() for p in model.parameters())
    rule.update()
    assert len(rule.F) == 4


def test_state_continues_exactly():
    model = nn.Linear(4, 3)
    rule = ElementRule(dict(model.named_parameters()), strength=4.0)
    backward(model, 0)
    rule.update()
    rule.consolidate()
    resumed = ElementRule(dict(model.named_parameters()), strength=4.0)
    resumed.load_state_dict(rule.state_dict())
    for a, b in zip(rule.tensors(), resumed.tensors(), strict=True):
        assert torch.equal(a, b)
    kept = [f.clone() for f in rule.F]
    resumed.update()  # changes its own window in place, not the one it came from
    for f, k in zip(rule.F, kept, strict=True):
        assert torch.equal(f, k)
