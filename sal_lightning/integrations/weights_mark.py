"""A mark of a model's weights, by which a file that was written for them is recognised."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def weights_mark(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The first weight of each of the parameters, (n,), in single precision on the CPU."""
    return torch.cat([p.detach().flatten()[:1].float().cpu() for p in parameters])
