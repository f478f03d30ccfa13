"""Asynchronous copies of small tensors from the device to the host."""

from typing import Any

import torch
from torch import Tensor


class Readback:
    """Starts a copy to the host; ``read()`` waits for this copy only, not for work queued after it."""

    def __init__(self, x: Tensor) -> None:
        self.host, self.event = x, None
        if x.is_cuda:
            self.host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()

    def read(self) -> list[Any]:
        """The values, as nested lists."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()
