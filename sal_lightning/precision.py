"""Computation without gradients and without autocast."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable gradients, and autocast on this device: tensors are computed with in their own precision."""
    casts = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
    with torch.no_grad(), casts:
        yield
