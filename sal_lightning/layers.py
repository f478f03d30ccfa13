"""Layers as linear maps: the weight as matrices (groups, out, d), the input as rows (groups, n, d)."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sal_lightning import attention, experts, recurrent
from sal_lightning.custom_forward import is_linear
from sal_lightning.distributed import by_rows, sharded
from sal_lightning.padding import Real
from sal_lightning.sampling import sample

AUTO = "auto"  # as the name of a layer: the last Linear
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Reals = Sequence[Real | None]  # for each input, which of its rows are not padding; None if all are real


class Layer(NamedTuple):
    """A weight of a module that acts linearly on rows, with its bias if that is trainable.

    A module may have several such weights. If several modules share a weight, the rows of all of them are used.
    """

    name: str  # the module's name if it has one weight, else the weight's name
    modules: tuple[nn.Module, ...]  # the modules that share this weight
    weight: Tensor
    bias: Tensor | None
    groups: int
    rows: Callable[[nn.Module, tuple[Any, ...], int, int, Reals], Tensor]
    transposed: bool = False  # stored as (in, out)
    stacked: bool = False  # stored as (groups, out, in), the bias as (groups, out)

    @property
    def module(self) -> nn.Module:
        """The first module that has this weight."""
        return self.modules[0]

    @property
    def out(self) -> int:
        """Number of rows of each group's matrix."""
        if self.stacked:
            return self.weight.shape[2 if self.transposed else 1]
        return self.weight.shape[-1 if self.transposed else 0] // self.groups

    @property
    def inputs(self) -> int:
        """Number of columns of each group's matrix, without the bias."""
        return self.weight.numel() // (self.out * self.groups)

    def read(self, args: tuple[Any, ...], n: int, step: int, real: Reals | None = None) -> Tensor:
        """At most ``n`` sampled rows (groups, n, d) of a forward pass's input, with a 1 appended if there is a bias.

        Args:
            args: the inputs of the module, from ``given``.
            n: the largest number of rows.
            step: shifts which rows are sampled.
            real: for each of ``args``, which rows are not padding; None if all are real.
        """
        x = self.rows(self.module, args, n, step, real or [None for _ in args])
        if self.stacked:  # stacked rows include the 1, which is 0 for a group without rows
            return x if self.bias is not None else x[..., :-1]
        return x if self.bias is None else homogeneous(x)

    def matrix(self, x: Tensor) -> Tensor:
        """A weight- or bias-shaped tensor as (groups, out, columns), in single precision at least.

        Shares memory with ``x`` if possible; after changing the result, call ``write``.
        """
        if x.dtype is not torch.float32:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        if x.dim() < self.weight.dim():
            x = x[..., None]  # a bias
        elif self.transposed:
            x = x.mT
        elif not self.stacked:
            x = x.flatten(1)
        if self.stacked:
            return x
        return x.view(self.groups, -1, x.shape[-1]) if self.groups > 1 else x[None]

    def write(self, t: Tensor, M: Tensor) -> None:
        """Copies ``M``, a changed ``matrix(t)``, back into ``t`` unless both share memory."""
        if M.data_ptr() != t.data_ptr():
            M = M.mT if self.transposed and t.dim() == self.weight.dim() else M
            t.copy_(M.reshape(t.shape))

    def along(self, X: Sequence[Tensor], U: Tensor) -> Tensor:
        """``X U`` (groups, out, k) of a weight-shaped and, if there is a bias, a bias-shaped tensor."""
        weight, *bias = map(self.matrix, X)
        U, inputs = U.to(weight.dtype), weight.shape[-1]
        XU = weight @ U[:, :inputs]
        return XU.addcmul_(bias[0], U[:, inputs:]) if bias else XU


def find(model: nn.Module, other: list[str] | None = None) -> list[Layer]:
    """All layers of the model that input directions can protect, outermost first.

    Args:
        model: the module to search.
        other: list to which the names of modules are appended that are left out because of a custom forward pass.
    """
    layers: dict[tuple[Any, ...], Layer] = {}
    inside, changed = set[nn.Module](), set[int]()
    for name, module in model.named_modules():
        name = plain_name(name)
        found = [layer for layer in _read(name, module) if _ready(layer)] if module not in inside else []
        if isinstance(module, nn.MultiheadAttention):
            # Its projections are called as functions, so hooks of its submodules are never called.
            inside.update(module.modules())
        if found and not is_linear(module):
            changed.update(id(layer.weight) for layer in found)
            if other is not None:
                other.append(name or "the model")
            continue
        for layer in found:
            key = id(layer.weight), layer.rows, _geometry(module)
            before = layers.get(key)
            layers[key] = layer if before is None else before._replace(modules=before.modules + layer.modules)
    return [layer for layer in layers.values() if id(layer.weight) not in changed]


def find_layer(model: nn.Module, name: str, argument: str) -> nn.Module | None:
    """The layer of this name; for ``"auto"`` the last Linear that is called, None where there is none.

    Args:
        model: the module to search, compiled or not.
        name: as in ``model.named_modules()``, or "auto".
        argument: the name of the caller's argument, for the error message.

    Raises:
        ValueError: no layer has this name; the message lists the nearest names.
    """
    named: dict[str, nn.Module] = {plain_name(n): module for n, module in model.named_modules()}
    if name in named:
        return named[name]
    if name == AUTO:
        # The projections inside an attention module are called as functions, so their hooks are never called.
        inside = {m for module in named.values() if isinstance(module, nn.MultiheadAttention) for m in module.modules()}
        return next((m for m in reversed(named.values()) if isinstance(m, nn.Linear) and m not in inside), None)
    near = get_close_matches(name, filter(None, named), n=3, cutoff=0.0)
    raise ValueError(
        f"Expected {argument} to be the name of a layer, {AUTO!r} or None, got {name!r}. Nearest are {near}."
    )


def plain_name(name: str) -> str:
    """A parameter or module name without the parts that ``torch.compile`` and FSDP wrappers insert.

    >>> plain_name("net._orig_mod.0.weight")
    'net.0.weight'
    """
    return re.sub(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)(?=\.|$)", "", name).lstrip(".")


def _ready(layer: Layer) -> bool:
    weight = layer.weight
    if not weight.requires_grad or nn.parameter.is_lazy(weight) or not weight.is_floating_point():
        return False
    return not sharded(weight) or (by_rows(weight) and layer.groups == 1 and not layer.transposed)


def _read(name: str, module: nn.Module) -> list[Layer]:
    """The layers of one module."""
    # Not `module.weight`: on a parametrized layer that computes a tensor that is not a parameter.
    weight, bias = module._parameters.get("weight"), _learning(module._parameters.get("bias"))
    if isinstance(module, nn.MultiheadAttention):
        return _read_attention(name, module)
    if several := _read_recurrent(name, module) or _read_experts(name, module):
        return several
    if weight is None:
        return []
    if isinstance(module, nn.Linear):
        return [Layer(name, (module,), weight, bias, 1, _linear_rows)]
    if isinstance(module, nn.Embedding):
        return [Layer(name, (module,), weight, None, 1, _no_rows)]
    if isinstance(module, _CONVS):
        return [Layer(name, (module,), weight, bias, module.groups, _conv_rows)]
    if type(module).__name__ == "Conv1D" and weight.dim() == 2:  # the linear layer of the GPT-2 in transformers
        return [Layer(name, (module,), weight, bias, 1, _linear_rows, transposed=True)]
    return []


def _read_attention(name: str, module: nn.MultiheadAttention) -> list[Layer]:
    """The input projections, separate and without their shared bias if their widths differ; the output projection."""
    weight = module._parameters.get("in_proj_weight")
    weights = {n: module._parameters.get(n) for n in ("q_proj_weight", "k_proj_weight", "v_proj_weight")}
    if weight is not None:
        found = [Layer(name, (module,), weight, _learning(module.in_proj_bias), 3, _attention_rows)]
    else:
        found = [
            Layer(_joined(name, n), (module,), W, None, 1, partial(_argument_rows, i))
            for i, (n, W) in enumerate(weights.items())
            if W is not None
        ]
    if attention.can_run_again(module):
        out = module.out_proj
        found.append(Layer(_joined(name, "out_proj"), (module,), out.weight, _learning(out.bias), 1, _output_rows))
    return found


def _read_recurrent(name: str, module: nn.Module) -> list[Layer]:
    parts = recurrent.parts(module)
    if any(map(sharded, module.parameters(recurse=False))):
        return []  # recomputing hidden states needs whole weights
    found = []
    for part in parts:
        weight, bias = module._parameters[part.name], _learning(module._parameters.get(part.bias or ""))
        assert weight is not None
        found.append(Layer(_joined(name, part.name), (module,), weight, bias, 1, partial(_recurrent_rows, part)))
    return found


def _read_experts(name: str, module: nn.Module) -> list[Layer]:
    found = []
    for part in experts.parts(module):
        weight, bias = module._parameters[part.name], _learning(module._parameters.get(part.bias or ""))
        assert weight is not None
        rows = partial(experts.rows, part)
        one = Layer(_joined(name, part.name), (module,), weight, bias, len(weight), rows, part.transposed, stacked=True)
        found.append(one)
    return found


def _joined(*names: str) -> str:
    return ".".join(filter(None, names))


def _learning(bias: Tensor | None) -> Tensor | None:
    return bias if bias is not None and bias.requires_grad else None


def rows(x: Tensor, n: int, step: int, real: Real | None) -> Tensor:
    """At most ``n`` sampled rows of ``x`` (rows, d); only real rows if ``real`` is given."""
    return x[sample(len(x), n, step, x.device)] if real is None else real.rows(x, n, step)


def readable(x: Any) -> bool:
    """Whether an input is a dense, real-valued tensor; subclasses of layers may take other inputs."""
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested and not x.is_complex()


def _no_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals) -> Tensor:
    raise TypeError("An embedding's input is counted, not read as rows.")


def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call that the layers of a module read, the main input first; empty if it is not readable."""
    if experts.parts(module):
        return experts.given(args, kwargs)
    if isinstance(module, nn.MultiheadAttention):
        attend = attention.called(module, args, kwargs)
        inputs = attend.query, attend.key, attend.value
        return (*inputs, attend) if all(map(readable, inputs)) else ()
    found = args + ((kwargs["input"],) if "input" in kwargs else ())
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and found:
        hx = found[1] if len(found) > 1 else kwargs.get("hx")
        call = recurrent.Call(module, found[0], hx) if isinstance(module, nn.RNNBase) else hx
        found = getattr(found[0], "data", found[0]), call
    return found if found and readable(found[0]) else ()


@contextmanager
def collected_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Context that yields a list, to which each call of the layer adds its main input."""
    found: list[Tensor] = []

    def collect(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.extend(x.detach() for x in given(module, args, kwargs)[:1])

    handle = layer.register_forward_pre_hook(collect, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


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
    """For each dimension, the positions of ``x`` that each output reads: (outputs, taps), -1 for zero padding.

    Positions are padded instead of the images, of which only the sampled patches are read.
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


def _geometry(module: nn.Module) -> tuple[Any, ...]:
    """The parameters that determine a convolution's patches; empty for other modules."""
    if not isinstance(module, _CONVS):
        return ()
    return module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode


def _attention_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals) -> Tensor:
    n = min(n, *(x.shape[:-1].numel() for x in args[:3]))  # keys may be fewer than queries
    return torch.cat([_linear_rows(module, (x,), n, step, (r,)) for x, r in zip(args[:3], real, strict=False)])


def _argument_rows(i: int, module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals) -> Tensor:
    return _linear_rows(module, args[i : i + 1], n, step, real[i : i + 1])


def _output_rows(module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals) -> Tensor:
    call: attention.Call = args[3]  # of the called module, since several may share this weight
    return attention.rows(call, n, step, real[0])[None]


def _recurrent_rows(
    part: recurrent.Part, module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: Reals
) -> Tensor:
    if isinstance(module, nn.RNNCellBase):
        return _linear_rows(module, (recurrent.cell_rows(module, part.kind, args),), n, step, (None,))
    call: recurrent.Call = args[1]
    return call.rows(part, n, step)[None]


def homogeneous(x: Tensor) -> Tensor:
    """Rows with a 1 appended, so that the bias is a weight like the others."""
    return torch.cat([x, x.new_ones((*x.shape[:-1], 1))], -1)
