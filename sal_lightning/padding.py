"""Padding masks that modules are called with, and the rows of layers' inputs that they mark as real."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from sal_lightning.torch_compile import uncompiled

# Masks of transformers are nonzero at real positions; those of torch are True or -inf at padded ones.
_OWN_MASKS = ("attention_mask", "src_key_padding_mask", "tgt_key_padding_mask", "key_padding_mask")
_MEMORY_MASKS = ("encoder_attention_mask", "memory_key_padding_mask")
_MEMORY = ("encoder_hidden_states", "memory")  # another sequence that a decoder attends to
# Models with two sequences: the inputs of each, and the mask of each.
_TWO_SEQUENCES = (
    (("input_ids", "inputs_embeds", "src"), ("attention_mask", "src_key_padding_mask")),
    (("decoder_input_ids", "decoder_inputs_embeds", "tgt"), ("decoder_attention_mask", "tgt_key_padding_mask")),
)
_KEYS = ("query", "key", "value")  # of nn.MultiheadAttention
_NAMES = {
    *_OWN_MASKS,
    *_MEMORY_MASKS,
    *_MEMORY,
    *_KEYS,
    "key_value_states",
    *(n for side in _TWO_SEQUENCES for ns in side for n in ns),
}


class Real:
    """Marks the rows of an input that are real, i.e. not padding.

    Args:
        real: (rows,) bool, True at a real row.
    """

    def __init__(self, real: Tensor) -> None:
        self.real = real
        self._ends: Tensor | None = None
        self._chosen: tuple[tuple[int, int], Tensor] | None = None

    def sample(self, n: int, step: int) -> Tensor:
        """Indices (min(n, rows),) of real rows; the same as those of ``sampling.sample`` if all rows are real.

        Indices repeat if there are fewer real rows, which avoids a device synchronization.
        """
        if self._chosen is None or self._chosen[0] != (n, step):
            self._chosen = (n, step), self._sample(n, step)
        return self._chosen[1]

    def _sample(self, n: int, step: int) -> Tensor:
        if self._ends is None:
            self._ends = self.real.cumsum(0)
        k = min(n, len(self.real))
        count = self._ends[-1].clamp(min=1)
        at = torch.arange(k, device=count.device) * (count // n | 1) + step * 7919 * (count != k)
        return torch.searchsorted(self._ends, at % count + 1).clamp(max=len(self.real) - 1)

    def rows(self, x: Tensor, n: int, step: int) -> Tensor:
        """At most ``n`` real rows of ``x`` (rows, d); NaN if none is real."""
        return x[self.sample(n, step)].where(self.real.any(), torch.nan)


class Mask:
    """Which positions of a sequence are real.

    Args:
        mask: (batch, time) or (time,); None: all positions are real.
        padded: whether padded positions are marked, by True or -inf; otherwise real ones are, by nonzero values.
        time_first: whether the inputs of layers are (time, batch, d).
    """

    def __init__(self, mask: Tensor | None, padded: bool = False, time_first: bool = False) -> None:
        self.mask, self.padded, self.time_first = mask, padded, time_first
        self._fits: dict[tuple[torch.Size, bool], Real | None] = {}

    def fit(self, shape: torch.Size, ids: bool) -> Real | None:
        """The real rows of an input; None if the mask does not fit its shape.

        Args:
            shape: the shape of the input without its width.
            ids: whether it is the input of an embedding, where the positions of all samples may be looked up once.
        """
        if self.mask is None:
            return None
        if (shape, ids) not in self._fits:
            real = self._fitted(self._real(), shape, ids)
            self._fits[shape, ids] = None if real is None else Real(real)
        return self._fits[shape, ids]

    def _real(self) -> Tensor:
        assert self.mask is not None
        mask = self.mask.detach()
        if self.padded:
            mask = ~mask if mask.dtype == torch.bool else mask != -torch.inf
        return (mask != 0).reshape(-1, mask.shape[-1])

    def _fitted(self, real: Tensor, shape: torch.Size, ids: bool) -> Tensor | None:
        layouts = [real.mT, real] if self.time_first else [real]
        for layout in layouts:
            if shape[:2] == layout.shape:
                more = layout.reshape(*layout.shape, *[1] * (len(shape) - 2))
                return more.expand(shape).reshape(-1)
        if shape == (real.numel(),):
            return layouts[0].reshape(-1)
        time = real.shape[1]
        if shape == (1, time) or (ids and shape == (time,)):
            return real.any(0)
        return None


class _Pair(NamedTuple):
    """A tensor argument of a module, and its mask."""

    tensor: Any  # a weak reference
    mask: Mask


class _Scope:
    """A module that takes masks, with the masks of its last call."""

    def __init__(self, module: nn.Module, places: dict[str, int], alone: bool) -> None:
        self.module, self.places, self.alone = module, places, alone
        self.inside = set(module.modules())
        self.two = all(any(name in places for name in masks) for _, masks in _TWO_SEQUENCES)
        first = (m.batch_first for m in module.modules() if isinstance(getattr(m, "batch_first", None), bool))
        self.time_first = not next(first, True)
        self.entered = 0
        self.discard_step()

    def discard_step(self) -> None:
        """Drop the masks of the last call."""
        self.own: Mask | None = None  # mask of the sequence that its layers process; None if unknown
        self.pairs: list[_Pair] = []

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the masks of a call."""
        self.discard_step()
        given = {n: args[i] if i < len(args) else kwargs.get(n) for n, i in self.places.items()}
        if self.two:
            for inputs, masks in _TWO_SEQUENCES:
                self._pair(given, inputs, self._mask(given, masks))
            return
        own, memory = self._mask(given, _OWN_MASKS), self._mask(given, _MEMORY_MASKS)
        attends = self._pair(given, _MEMORY, memory)
        if isinstance(self.module, nn.MultiheadAttention):
            self._pair(given, _KEYS[1:], own)
            own = own if given["query"] is given["key"] else None
        elif self._pair(given, ("key_value_states",), own):
            own = None
        elif own is None and (attends or self.alone) and all(given.get(name) is None for name in _OWN_MASKS):
            own = Mask(None)
        self.own = own

    def _mask(self, given: dict[str, Any], names: Iterable[str]) -> Mask | None:
        """The first of these masks that masks positions, not pairs of positions."""
        for name in names:
            mask = given.get(name)
            if isinstance(mask, Tensor) and mask.dim() in (1, 2):
                return Mask(mask, name.endswith("padding_mask"), self.time_first)
        return None

    def _pair(self, given: dict[str, Any], names: Iterable[str], mask: Mask | None) -> bool:
        """Record that these tensors have this mask; returns whether there are any."""
        tensors = [t for name in names if isinstance(t := given.get(name), Tensor)]
        if mask is not None:
            self.pairs += [_Pair(ref(t), mask) for t in tensors] or [_Pair(lambda: None, mask)]
        return bool(tensors)


class Padding:
    """The current padding masks of a model, from forward pre-hooks on modules that take a mask by a standard name.

    The names are ``attention_mask``, ``decoder_attention_mask`` and ``encoder_attention_mask`` as in transformers, and
    those of torch that end in ``key_padding_mask``. A mask applies to the layers inside the module that takes it. It
    also applies to layers outside of any such module that are called later, until the next mask or the end of the step.
    """

    def __init__(self) -> None:
        self._scopes: dict[nn.Module, _Scope] = {}
        self._around: dict[nn.Module, list[_Scope]] = {}  # the scopes that contain a layer
        self._handles: list[RemovableHandle] = []
        self._before_masks = set[nn.Module]()  # layers that are called before the first mask
        self._entered = 0
        self._last: Mask | None = None

    def begin(self, model: nn.Module) -> None:
        """Hook the modules of this model that take a mask."""
        self.end()
        found = {m: p for m in model.modules() if (p := _places(m)) is not None}
        inner = {m for module in found for m in module.modules() if m is not module}
        self._scopes = {m: _Scope(m, places, m not in inner) for m, places in found.items()}
        for scope in self._scopes.values():  # has to run before the hooks of layers that take a mask themselves
            hook = self._listener(scope)
            self._handles.append(scope.module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))

    def end(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._scopes.clear()
        self._around.clear()
        self._before_masks.clear()
        self.discard_step()

    def discard_step(self) -> None:
        """Drop the masks of this step."""
        self._last = None
        for scope in self._scopes.values():
            scope.discard_step()

    def among(self, module: nn.Module, given: Sequence[Any]) -> list[Real | None]:
        """For each input of a layer, the rows that are real; None if unknown, when all count as real."""
        if isinstance(module, _ConvNd | _NormBase):
            return [None for _ in given]  # their rows are patches, or channels come first
        ids = isinstance(module, nn.Embedding)
        return [self._find(module, x, x.shape if ids else x.shape[:-1], ids) if _is_rows(x) else None for x in given]

    def of_output(self, x: Tensor) -> Real | None:
        """The real rows of an output of the whole model; None if unknown."""
        return None if self._last is None else self._last.fit(x.shape[:-1], False)

    def _find(self, module: nn.Module, x: Tensor, shape: torch.Size, ids: bool) -> Real | None:
        if module not in self._around:
            self._around[module] = [s for s in self._scopes.values() if module in s.inside]
        around = self._around[module]
        if not around:
            if self._last is None:
                self._before_masks.add(module)
            return None if self._last is None or module in self._before_masks else self._last.fit(shape, ids)
        for scope in sorted(around, key=lambda s: -s.entered):
            for pair in scope.pairs:
                if pair.tensor() is x:
                    return pair.mask.fit(shape, ids)
            masks = self._of_two(scope, shape, ids) if scope.two else scope.own
            if masks is not None and (masks.mask is None or masks.fit(shape, ids) is not None):
                return masks.fit(shape, ids)
        return None

    def _of_two(self, scope: _Scope, shape: torch.Size, ids: bool) -> Mask | None:
        """With two sequences: the mask of the one processed last, or of the one with this shape."""
        if self._last is not None and (self._last.mask is None or self._last.fit(shape, ids) is not None):
            return self._last
        fitting = {pair.mask for pair in scope.pairs if pair.mask.fit(shape, ids) is not None}
        return fitting.pop() if len(fitting) == 1 else None

    def _listener(self, scope: _Scope) -> Callable[..., None]:
        @uncompiled
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not scope.module or not torch.is_grad_enabled():
                return  # a copy of the model, or evaluation
            scope.enter(args, kwargs)
            self._entered += 1
            scope.entered = self._entered
            if scope.own is not None or (scope.two and scope.alone):
                self._last = scope.own

        return listen


def _is_rows(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dim() > 0


def _places(module: nn.Module) -> dict[str, int] | None:
    """Positions of the mask and sequence arguments in this module's forward pass; None if it takes no mask."""
    try:
        names = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):  # no inspectable signature
        return None
    places = {name: i for i, name in enumerate(names) if name in _NAMES}
    masks = {*_OWN_MASKS, *_MEMORY_MASKS, *_TWO_SEQUENCES[1][1]}
    return None if masks.isdisjoint(places) else places
