"""What the loss scaler of 16-bit training does to the gradients."""

from collections.abc import Iterable

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sal_lightning import processes
from sal_lightning.rules.base import Rule


def unit(scaler: GradScaler | None, optimizer: Optimizer | None, rules: Iterable[Rule]) -> float | None:
    """What the gradients are multiplied by; None if the scaler will skip this step."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    grads = [g for rule in rules for g in rule.gradients() if g is not None]
    finite = torch.stack([torch.isfinite(g.coalesce().values() if g.is_sparse else g).all() for g in grads]).all()
    if processes.mean([finite.float()])[0] != 1:
        return None
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return scaler.get_scale() if fused else 1.0
