"""What surrounds a call: a backward pass that runs it again, a loop that casts or records gradients."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


def in_backward() -> bool:
    """Whether a backward pass is running: under checkpointing it runs forward passes again."""
    return bool(torch._C._current_graph_task_id() != -1)  # as torch.utils.module_tracker asks


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Without gradients, and in the tensors' own precision whatever the loop around it casts to."""
    casts = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
    with torch.no_grad(), casts:
        yield
