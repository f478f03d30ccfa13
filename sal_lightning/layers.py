"""How a layer is read: its weight as matrices (groups, out, d), its input as the rows (groups, n, d) they multiply."""

import math
import re
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sal_lightning.padding import Real
from sal_lightning.probing import is_linear
from sal_lightning.processes import by_rows, sharded

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Reals = Sequence[Real | None]  # of each input, which of its rows are no padding; None: all


class Layer(NamedTuple):
    """A module whose weight (and bias, if it has one that learns) acts linearly on rows of its input."""

    name: str
    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    groups: int
    rows: Callable[[nn.Module, tuple[Any, ...], int, int, Reals], Tensor]
    transposed: bool = False  # kept as (in, out)

    @property
    def out(self) -> int:
        """Rows of each group's matrix."""
        return self.weight.shape[-1 if self.transposed else 0] // self.groups

    @property
    def inputs(self) -> int:
        """Its columns, the bias left out."""
        return self.weight.numel() // (self.out * self.groups)

    def matrix(self, x: Tensor) -> Tensor:
        """A weight- or bias-shaped tensor as (groups, out, columns), in single precision at least.

        The same memory where it can be: ``write`` says what was done to it.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x[:, None] if x.dim() == 1 else x.mT if self.transposed else x.flatten(1)
        return x.view(self.groups, -1, x.shape[-1]) if self.groups > 1 else x[None]

    def write(self, t: Tensor, M: Tensor) -> None:
        """What was done to the matrix of ``t`` is done to ``t``."""
        if M.data_ptr() != t.data_ptr():
            t.copy_(M.mT[0] if self.transposed and t.dim() > 1 else M.reshape(t.shape))

    def along(self, X: Sequence[Tensor], U: Tensor) -> Tensor:
        """``X U`` (groups, out, k) of a weight-shaped and, if there is a bias, a bias-shaped tensor."""
        weight, *bias = map(self.matrix, X)
        U, inputs = U.to(weight.dtype), weight.shape[-1]
        XU = weight @ U[:, :inputs]
        return XU.addcmul_(bias[0], U[:, inputs:]) if bias else XU


def find(model: nn.Module, other: list[str] | None = None) -> list[Layer]:
    """Every layer of the model that protection by input directions understands, outermost first.

    Args:
        model: the module to look through.
        other: takes the names of layers that are left out because their forward pass is another.
    """
    layers, inside = [], set[nn.Module]()
    for name, module in model.named_modules():
        name = plain_name(name)
        if isinstance(module, nn.MultiheadAttention):
            # Its projections are called as functions: hooks of the modules inside never fire.
            inside.update(module.modules())
        layer = _read(name, module) if module not in inside or isinstance(module, nn.MultiheadAttention) else None
        if layer is None or not _ready(layer):
            continue
        if is_linear(module):
            layers.append(layer)
        elif other is not None:
            other.append(name or "the model")
    return layers


def plain_name(name: str) -> str:
    """A name in the model as its user wrote it, whatever was wrapped around parts of it.

    >>> plain_name("net._orig_mod.0.weight")
    'net.0.weight'
    """
    return re.sub(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)(?=\.|$)", "", name).lstrip(".")


def _ready(layer: Layer) -> bool:
    weight = layer.weight
    if not weight.requires_grad or nn.parameter.is_lazy(weight) or not weight.is_floating_point():
        return False
    return not sharded(weight) or (by_rows(weight) and layer.groups == 1 and not layer.transposed)


def _read(name: str, module: nn.Module) -> Layer | None:
    # Not `module.weight`: of a parametrized layer that is no parameter, and reading it computes it.
    weight, bias = module._parameters.get("weight"), _learning(module._parameters.get("bias"))
    if isinstance(module, nn.MultiheadAttention):
        weight, bias = module.in_proj_weight, _learning(module.in_proj_bias)
        return None if weight is None else Layer(name, module, weight, bias, 3, _attention_rows)
    if weight is None:
        return None
    if isinstance(module, nn.Linear):
        return Layer(name, module, weight, bias, 1, _linear_rows)
    if isinstance(module, nn.Embedding):
        return Layer(name, module, weight, None, 1, _no_rows)
    if isinstance(module, _CONVS):
        return Layer(name, module, weight, bias, module.groups, _conv_rows)
    if type(module).__name__ == "Conv1D" and weight.dim() == 2:  # the linear layer of the GPT-2 in transformers
        return Layer(name, module, weight, bias, 1, _linear_rows, transposed=True)
    return None


def _learning(bias: Tensor | None) -> Tensor | None:
    return bias if bias is not None and bias.requires_grad else None


def sample(total: int, n: int, step: int, device: torch.device | None = None) -> Tensor | slice:
    """Indices of at most ``n`` of ``total`` rows: evenly spread, shifted by the step, the same in every rerun.

    >>> sample(10, 4, step=1)
    tensor([9, 2, 5, 8])
    """
    if total <= n:
        return slice(None)
    # An odd stride meets every position of sequences whose length is a power of two.
    return (torch.arange(n, device=device) * (total // n | 1) + step * 7919) % total


def rows(x: Tensor, n: int, step: int, real: Real | None) -> Tensor:
    """At most ``n`` sampled rows of ``x`` (rows, d), of the real ones where it is known which these are."""
    return x[sample(len(x), n, step, x.device)] if real is None else real.rows(x, n, step)


def readable(x: Any) -> bool:
    """Whether this input is rows of real numbers, as all layers here expect; some subclasses are given other things."""
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_complex()


def _no_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals) -> Tensor:
    raise TypeError("An embedding's input is counted, not read as rows.")


def _linear_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals) -> Tensor:
    x: Tensor = args[0].detach()
    x = x.flatten(0, -2) if x.dim() > 1 else x[None]
    return rows(x, n, step, real[0])[None]


def _conv_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals) -> Tensor:
    assert isinstance(module, _CONVS)
    x: Tensor = args[0].detach()
    x = x if x.dim() == module.weight.dim() else x[None]
    taps = _taps(module, x)
    places = (len(x), *map(len, taps))
    total, dims = math.prod(places), len(taps)
    chosen = sample(total, n, step, x.device)
    flat = torch.arange(total, device=x.device) if isinstance(chosen, slice) else chosen
    image, *at = torch.unravel_index(flat, places)
    shapes = [[-1 if j == i else 1 for j in range(dims)] for i in range(dims)]
    read = [t[a].view(len(a), *shape) for t, a, shape in zip(taps, at, shapes, strict=True)]
    where: tuple[Any, ...] = (image.view(-1, *[1] * dims), slice(None), *read)
    patches = x[where]  # (n, *taps, channels)
    if module.padding_mode == "zeros" and any(module._reversed_padding_repeated_twice):
        inside = reduce(torch.logical_and, (r >= 0 for r in read))
        patches = patches.where(inside[..., None], 0.0)
    return patches.movedim(-1, 1).reshape(len(flat), module.groups, -1).transpose(0, 1)


def _taps(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Along each dimension, which positions of ``x`` each output reads: (outputs, taps), -1 where zeros are padded.

    Positions are padded instead of images: of these only the few sampled patches are ever read.
    """
    assert isinstance(module, _CONVS)
    pads = torch.tensor(module._reversed_padding_repeated_twice).view(-1, 2).flip(0).tolist()
    taps = []
    for i, (size, stride, dilation) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        line = torch.arange(float(x.shape[2 + i]), device=x.device)[None, None]
        zeros = module.padding_mode == "zeros"
        line = F.pad(line, pads[i], value=-1) if zeros else F.pad(line, pads[i], module.padding_mode)
        taps.append(line.flatten().long().unfold(0, dilation * (size - 1) + 1, stride)[:, ::dilation])
    return taps


def _attention_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals) -> Tensor:
    return torch.cat([_linear_rows(module, (x,), n, step, (r,)) for x, r in zip(args[:3], real, strict=False)])


def homogeneous(x: Tensor) -> Tensor:
    """Rows with a 1 appended, so that the bias is a weight like the others."""
    return torch.cat([x, x.new_ones((*x.shape[:-1], 1))], -1)
