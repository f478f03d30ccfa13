import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from sal_lightning.grad_scaler import unit
from sal_lightning.rules.element import ElementRule


@pytest.mark.parametrize("kind", ["none", "disabled", "unscaled", "fused"])
@pytest.mark.parametrize("finite", [True, False])
def test_unit_returns_the_scale_or_none_for_a_step_that_will_be_skipped(kind, finite):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), fused=kind == "fused")
    scaler = None if kind == "none" else GradScaler("cpu", init_scale=8.0, enabled=kind != "disabled")
    for p in model.parameters():
        p.grad = torch.full_like(p, 1.0 if finite else torch.inf)
    skipped = not finite and kind in ("unscaled", "fused")
    expected = None if skipped else 8.0 if kind == "fused" else 1.0
    assert unit(scaler, optimizer, [ElementRule(dict(model.named_parameters()), 1.0)]) == expected
