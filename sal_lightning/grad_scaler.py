"""Loss scaling of 16-bit training: the factor on gradients, and skipped steps."""

from collections.abc import Iterable
from typing import TypeGuard

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sal_lightning import distributed
from sal_lightning.rules.base import Rule


def scales(scaler: GradScaler | None) -> TypeGuard[GradScaler]:
    """Whether there is a scaler and it is enabled."""
    return scaler is not None and scaler.is_enabled()


def unit(
    scaler: GradScaler | None, optimizer: Optimizer | None, rules: Iterable[Rule], scaled: bool = False
) -> float | None:
    """The factor by which gradients are scaled; None if the scaler will skip this step.

    Args:
        scaler: the loss scaler, if there is one.
        optimizer: the optimizer that will use the gradients; a fused one unscales them in its step.
        rules: the rules whose parameters' gradients are checked; at least one has a gradient.
        scaled: whether the scaler's ``unscale_`` has not been called yet.
    """
    if not scales(scaler):
        return 1.0
    grads = [g for rule in rules for g in rule.gradients() if g is not None]
    finite = torch.stack([torch.isfinite(g.coalesce().values() if g.is_sparse else g).all() for g in grads]).all()
    (everywhere,) = distributed.mean([finite.float()])
    one = torch.ones_like(everywhere)
    scaled = scaled or getattr(optimizer, "_step_supports_amp_scaling", False)
    # Both values in one transfer, since each transfer synchronizes with the device.
    share, size = torch.stack([everywhere, scaler.scale(one) if scaled else one]).tolist()
    return size if share == 1 else None
