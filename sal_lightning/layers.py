"""How a layer is read: its weight as matrices (groups, out, d), its input as the rows (groups, n, d) they multiply."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Layer(NamedTuple):
    """A module whose weight (and bias, if it has one that learns) acts linearly on rows of its input."""

    name: str
    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    groups: int
    rows: Callable[[nn.Module, tuple[Any, ...], int, int], Tensor]


def find(model: nn.Module) -> list[Layer]:
    """Every layer of the model that protection by input directions understands, outermost first."""
    layers, inside = [], set[nn.Module]()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            # Its projections are called as functions: hooks of the modules inside never fire.
            inside.update(module.modules())
        layer = _read(name, module) if module not in inside or isinstance(module, nn.MultiheadAttention) else None
        if layer is not None and _ready(layer.weight):
            layers.append(layer)
    return layers


def _ready(weight: Tensor) -> bool:
    return weight.requires_grad and not nn.parameter.is_lazy(weight) and weight.is_floating_point()


def _read(name: str, module: nn.Module) -> Layer | None:
    if isinstance(module, nn.Linear):
        return Layer(name, module, module.weight, _learning(module.bias), 1, _linear_rows)
    if isinstance(module, nn.Embedding):
        return Layer(name, module, module.weight, None, 1, _no_rows)
    if isinstance(module, _CONVS):
        return Layer(name, module, module.weight, _learning(module.bias), module.groups, _conv_rows)
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return Layer(name, module, module.in_proj_weight, _learning(module.in_proj_bias), 3, _attention_rows)
    return None


def _learning(bias: Tensor | None) -> Tensor | None:
    return bias if bias is not None and bias.requires_grad else None


def sample(total: int, n: int, step: int) -> Tensor | slice:
    """Indices of at most ``n`` of ``total`` rows: evenly spread, shifted by the step, the same in every rerun.

    >>> sample(10, 4, step=1)
    tensor([9, 2, 5, 8])
    """
    if total <= n:
        return slice(None)
    # An odd stride meets every position of sequences whose length is a power of two.
    return (torch.arange(n) * (total // n | 1) + step * 7919) % total


def _no_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int) -> Tensor:
    raise TypeError("An embedding's input is counted, not read as rows.")


def _linear_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int) -> Tensor:
    x: Tensor = args[0].detach()
    x = x.flatten(0, -2) if x.dim() > 1 else x[None]
    return x[sample(len(x), n, step)][None]


def _conv_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int) -> Tensor:
    assert isinstance(module, _CONVS)
    x: Tensor = args[0].detach()
    x = x if x.dim() == module.weight.dim() else x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode)
    for i, (size, stride, dilation) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        # A view (…, positions, taps): nothing is copied until the few sampled patches are taken.
        x = x.unfold(2 + i, dilation * (size - 1) + 1, stride)[..., ::dilation]
    dims = module.weight.dim() - 2
    x = x.movedim(1, 1 + dims)  # (batch, *positions, channels, *taps)
    places = x.shape[: 1 + dims]
    total = places.numel()
    chosen = sample(total, n, step)
    flat = torch.arange(total) if isinstance(chosen, slice) else chosen
    patches = x[torch.unravel_index(flat.to(x.device), places)]
    return patches.reshape(len(flat), module.groups, -1).transpose(0, 1)


def _attention_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int) -> Tensor:
    return torch.cat([_linear_rows(module, (x,), n, step) for x in args[:3]])


def homogeneous(x: Tensor) -> Tensor:
    """Rows with a 1 appended, so that the bias is a weight like the others."""
    return torch.cat([x, x.new_ones((*x.shape[:-1], 1))], -1)
