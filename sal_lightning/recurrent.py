"""Inputs of the weights of recurrent layers: the module's input, and recomputed hidden states.

No hook receives the inner hidden states, so a few sampled sequences are run again without gradients, layer by layer.
Sequences are stored as in a ``PackedSequence``: by time step, without those that have ended.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sal_lightning.sampling import sample

FEW = 8  # sequences that are run again; more where they are too short to yield enough rows


class Part(NamedTuple):
    """One weight of a recurrent module."""

    name: str  # of the parameter
    bias: str | None
    kind: str  # its input: "input", "hidden" (the previous state) or "inner" (the state before its projection)
    layer: int = 0
    reverse: bool = False


def parts(module: nn.Module) -> list[Part]:
    """The weights of a recurrent module; empty for other modules and for parametrized ones."""
    if isinstance(module, nn.RNNBase):
        found = _layer_parts(module)
    elif isinstance(module, nn.RNNCellBase):
        kinds = {"ih": "input", "hh": "hidden"}
        found = [Part(f"weight_{i}", f"bias_{i}" if module.bias else None, kind) for i, kind in kinds.items()]
    else:
        return []
    names = {name for part in found for name in (part.name, part.bias) if name is not None}
    return found if names <= module._parameters.keys() else []


def _layer_parts(module: nn.RNNBase) -> list[Part]:
    found = []
    for layer in range(module.num_layers):
        for reverse in (False, True)[: 1 + module.bidirectional]:
            end = f"_l{layer}" + "_reverse" * reverse
            for i, kind in {"ih": "input", "hh": "hidden"}.items():
                bias = f"bias_{i}{end}" if module.bias else None
                found.append(Part(f"weight_{i}{end}", bias, kind, layer, reverse))
            if module.proj_size:
                found.append(Part(f"weight_hr{end}", None, "inner", layer, reverse))
    return found


def cell_rows(module: nn.Module, kind: str, args: tuple[Any, ...]) -> Tensor:
    """All rows (n, d) of a cell's input, or of the hidden state that it is called with."""
    assert isinstance(module, nn.RNNCellBase)
    x: Tensor = args[0].detach()
    if kind == "input":
        return x.reshape(-1, x.shape[-1])
    h = args[1][0] if isinstance(args[1], tuple | list) else args[1]
    if h is None:
        return x.new_zeros(x.shape[:-1].numel(), module.hidden_size)
    hidden: Tensor = h.detach()
    return hidden.reshape(-1, module.hidden_size)


class _Packed(NamedTuple):
    """Sequences in the layout of ``PackedSequence``: longest first, rows ordered by time step."""

    data: Tensor  # (rows, features)
    sizes: Tensor  # (times,) on the CPU: number of sequences at each time step


class _Layer(NamedTuple):
    """Inputs of the weights of one layer, for each direction."""

    x: Tensor  # (rows, features)
    hidden: list[Tensor]  # (rows, hidden or projected) the state before each row
    inner: list[Tensor]  # (rows, hidden) the state after each row, not projected


class Call:
    """One call of an RNN, LSTM or GRU, from which the input rows of each of its weights are computed.

    Args:
        module: the module that is called.
        x: its input: sequences, one sequence or a ``PackedSequence``.
        hx: the initial hidden state in the module's format; None is zeros.
    """

    def __init__(self, module: nn.RNNBase, x: Any, hx: Any = None) -> None:
        self.module, self.x, self.hx = module, x, hx
        self.directions = 1 + module.bidirectional
        self._known: list[_Layer] = []  # computed when a hidden state is needed

    def rows(self, part: Part, n: int, step: int) -> Tensor:
        """At most ``n`` rows (n, d) of this weight's input, sampled over sequences and time."""
        if part.kind == "input" and part.layer == 0:
            return self._inputs(n, step)
        self._known = self._known or self._recompute(n, step)
        layer = self._known[part.layer]
        rows = {"input": [layer.x] * 2, "hidden": layer.hidden, "inner": layer.inner}[part.kind][part.reverse]
        return rows[sample(len(rows), n, step, rows.device)]

    def _inputs(self, n: int, step: int) -> Tensor:
        """Rows of the module's input, of all sequences."""
        x = self._sequences()
        if isinstance(x, _Packed):
            return x.data[sample(len(x.data), n, step, x.data.device)]
        chosen = sample(x.shape[0] * x.shape[1], n, step, x.device)
        return x.flatten(0, 1) if isinstance(chosen, slice) else x[chosen // x.shape[1], chosen % x.shape[1]]

    def _sequences(self) -> "_Packed | Tensor":
        """The input as it was packed, or as (times, sequences, features)."""
        if isinstance(self.x, PackedSequence):
            return _Packed(self.x.data.detach(), self.x.batch_sizes)
        x: Tensor = self.x.detach()
        if x.dim() == 2:
            return x[:, None]
        return x.transpose(0, 1) if self.module.batch_first else x

    def _recompute(self, n: int, step: int) -> list[_Layer]:
        """All layers on a few sampled sequences, in single precision at least."""
        x = self._sequences()
        times, count = (len(x.sizes), int(x.sizes[0])) if isinstance(x, _Packed) else x.shape[:2]
        some = torch.arange(count)[sample(count, max(FEW, math.ceil(n / times)), step)].sort().values
        packed = _select(x, some)
        dtype = torch.promote_types(self.module._flat_weights[0].dtype, torch.float32)  # type: ignore[union-attr]
        first = [h.to(dtype) for h in self._initial_states(some)]
        known, data = list[_Layer](), packed.data.to(dtype)
        for layer in range(self.module.num_layers):
            at = slice(layer * self.directions, (layer + 1) * self.directions)
            out, one = self._run(layer, packed._replace(data=data), [h[at] for h in first])
            known.append(one)
            data = self._dropped(out, step * self.module.num_layers + layer)
        return known

    def _initial_states(self, some: Tensor) -> list[Tensor]:
        """The initial hidden states of these sequences, (layers * directions, sequences, features), and cell states."""
        module, lstm = self.module, self.module.mode == "LSTM"
        if self.hx is None:
            shape = module.num_layers * self.directions, len(some)
            like = module._flat_weights[0]
            sizes = [module.proj_size or module.hidden_size, module.hidden_size][: 1 + lstm]
            return [torch.zeros(*shape, size, device=like.device) for size in sizes]  # type: ignore[union-attr]
        hx = [h.detach() for h in (self.hx if lstm else (self.hx,))]
        hx = [h[:, None] if h.dim() == 2 else h for h in hx]
        if isinstance(self.x, PackedSequence) and self.x.sorted_indices is not None:
            hx = [h.index_select(1, self.x.sorted_indices) for h in hx]
        return [h.index_select(1, some.to(h.device)) for h in hx]

    def _run(self, layer: int, x: _Packed, first: list[Tensor]) -> tuple[Tensor, _Layer]:
        """Run one layer on packed sequences: its output, and the inputs of its weights."""
        weights, projections, start = list[Tensor](), list[Tensor](), first[0]
        for reverse in (False, True)[: self.directions]:
            end = f"_l{layer}" + "_reverse" * reverse
            names = [f"{name}{end}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            mine = [self._weight(name, x.data.dtype) for name in names[: 2 + 2 * self.module.bias]]
            if self.module.proj_size:
                # The unprojected states are those of an LSTM without projection whose W_hh is W_hh W_hr.
                projections.append(self._weight(f"weight_hr{end}", x.data.dtype))
                mine[1] = mine[1] @ projections[-1]
            weights += mine
        if projections:
            start = torch.stack([h @ torch.linalg.pinv(P).mT for h, P in zip(first[0], projections, strict=True)])
        hx = [start, *first[1:]]
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN needs the weights of all layers in contiguous memory
            run = getattr(torch, self.module.mode.lower())
            state = hx if len(hx) > 1 else hx[0]
            y = run(x.data, x.sizes, state, weights, self.module.bias, 1, 0.0, False, self.directions > 1)[0]
        inner = list(y.chunk(self.directions, -1))
        outs = [h @ P.mT for h, P in zip(inner, projections, strict=True)] if projections else inner
        hidden = [
            torch.cat([out, h])[_previous_rows(x, reverse).to(out.device)]
            for out, h, reverse in zip(outs, first[0], (False, True), strict=False)
        ]
        return torch.cat(outs, -1), _Layer(x.data, hidden, inner)

    def _weight(self, name: str, dtype: torch.dtype) -> Tensor:
        weight = self.module._parameters[name]
        assert weight is not None
        return weight.detach().to(dtype)

    def _dropped(self, x: Tensor, seed: int) -> Tensor:
        """Dropout between layers, at the module's rate; the mask of the original call is not available."""
        p = self.module.dropout if self.module.training else 0.0
        if not p:
            return x
        kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) >= p
        return x * kept.to(x.device) / max(1 - p, 1e-6)


def _select(x: "_Packed | Tensor", some: Tensor) -> _Packed:
    """Select sequences, packed.

    Args:
        x: all sequences.
        some: indices of the selected ones, in ascending order.
    """
    if isinstance(x, Tensor):
        return _Packed(x[:, some.to(x.device)].flatten(0, 1), torch.full((x.shape[0],), len(some)))
    there = some < x.sizes[:, None]
    rows = ((x.sizes.cumsum(0) - x.sizes)[:, None] + some)[there]
    sizes = there.sum(1)
    return _Packed(x.data[rows.to(x.data.device)], sizes[sizes > 0])


def _previous_rows(x: _Packed, reverse: bool) -> Tensor:
    """For each row, the index of its previous state in the concatenation of all rows and the initial states."""
    sizes, times = x.sizes, len(x.sizes)
    starts = sizes.cumsum(0) - sizes
    time = torch.arange(times).repeat_interleave(sizes)
    sequence = torch.arange(len(time)) - starts[time]
    if reverse:
        next_sizes = torch.cat([sizes[1:], sizes.new_zeros(1)])
        begun, from_time = sequence >= next_sizes[time], (time + 1).clamp(max=times - 1)
    else:
        begun, from_time = time == 0, (time - 1).clamp(min=0)
    return torch.where(begun, len(time) + sequence, starts[from_time] + sequence)
