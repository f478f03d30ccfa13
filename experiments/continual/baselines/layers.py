"""Linear layers as matrices that include the bias, for methods that project by the inputs of a layer."""

import torch
from torch import Tensor, nn


def linear(model: nn.Module) -> list[nn.Linear]:
    """The linear layers, in their order."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def extended(layer: nn.Linear, x: Tensor) -> Tensor:
    """Inputs (n, in), with a constant 1 as the input of the bias, if there is one."""
    return x if layer.bias is None else torch.cat([x, x.new_ones(len(x), 1)], 1)


def gradient(layer: nn.Linear) -> Tensor:
    """The gradient (out, in) of the weight, with that of the bias as the last column, if there is one."""
    parts = [p.grad if p.dim() == 2 else p.grad[:, None] for p in layer.parameters() if p.grad is not None]
    return torch.cat(parts, 1)


def set_gradient(layer: nn.Linear, G: Tensor) -> None:
    """Set the gradient of the weight, and that of the bias to the last column of G, if there is one."""
    layer.weight.grad = G[:, : layer.in_features].contiguous()
    if layer.bias is not None:
        layer.bias.grad = G[:, -1].contiguous()
