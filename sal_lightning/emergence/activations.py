"""Forward hooks that collect the input of one layer in training, for the emergence field."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from sal_lightning import distributed
from sal_lightning.emergence.field import COHERENT, NOVEL, EmergenceField
from sal_lightning.emergence.mean_shift import MeanShift
from sal_lightning.forward_hooks import in_backward, on_weight_gradient
from sal_lightning.input_sketch import finite_rows
from sal_lightning.layers import AUTO, rows
from sal_lightning.padding import Padding
from sal_lightning.torch_compile import uncompiled

ROWS = 128  # rows sampled in a step
DENSE, EVERY = 16, 8  # the first DENSE steps all enter the field, then one in EVERY, with that weight


class ActivationObserver:
    """Samples rows of the input of one layer, and updates a field with them once per step.

    Args:
        name: name of the layer, or "auto".

    Raises:
        ValueError: ``name`` is empty or not a string.
    """

    wanted = True  # whether the current step may be measured
    in_step = True  # whether a training step is running

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"Expected field to be the name of a layer, {AUTO!r} or None, got {name!r}.")
        self.name, self.field, self.shift = name, EmergenceField(), MeanShift()
        self.steps = 0
        self.seen: Tensor | None = None  # (4,) the last measurement
        self._rows: list[Tensor] = []  # of this step
        self._forward = False  # whether the layer ran not only in a backward pass
        self._running: Tensor | None = None  # of a pass in evaluation mode, until it ends
        self._device: torch.device | None = None
        self._padding: Padding | None = None
        self._handles: list[RemovableHandle] = []

    def begin(
        self, layer: nn.Module | None, device: torch.device | None = None, padding: Padding | None = None
    ) -> None:
        """Register hooks on a layer.

        Args:
            layer: the layer; None collects nothing.
            device: device of the model.
            padding: attention masks of the model.
        """
        self.end()
        self._padding = padding
        self._device, self._forward, self.in_step = device, False, True
        if layer is not None:
            self._handles = [layer.register_forward_pre_hook(self._pre_hook(layer), with_kwargs=True)]
            if not layer.training:  # compiled code includes only hooks registered before compilation
                self._follow(layer)

    def end(self) -> None:
        """Remove the hooks; the field is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._padding, self._running, self.seen = [], None, None, None
        self.discard_step()

    @property
    def due(self) -> bool:
        """Whether this step enters the field."""
        return self.steps < DENSE or self.steps % EVERY == 0

    def discard_step(self) -> None:
        """Discard the rows of this step."""
        self._rows.clear()

    def update_field(self, measure: bool) -> None:
        """Update the field with the rows of this step; if ``measure``, measure them first, into ``seen``."""
        x = finite_rows(torch.cat(self._rows)) if self._rows else None
        self.discard_step()
        if x is not None and self._is_other(x):
            self.field, self.shift, self.steps = EmergenceField(), MeanShift(), 0
        self.seen = self._measured(x) if measure and x is not None else None
        if self.due:
            self._learn(x, 1 if self.steps < DENSE else EVERY)
        self.steps += 1

    def _measured(self, x: Tensor) -> Tensor:
        """As ``EmergenceField.measure``, but with the novelty of ``MeanShift``: (4,)."""
        together, _, inside, _ = self.field.measure(x)
        with torch.autocast(x.device.type, enabled=False):
            new = self.shift.measure(x)
        emergence = (together >= COHERENT) & (new >= NOVEL)
        return torch.stack([together, new, inside, emergence.to(x.dtype)])

    def _learn(self, x: Tensor | None, steps: int) -> None:
        """Update the field, averaged over processes; skip a step in which one of them has no rows."""
        if x is not None and distributed.count() == 1:
            self._update(x, steps)
        elif distributed.count() > 1:
            has_rows = torch.tensor([float(x is not None)], device=self._device)
            if distributed.mean([has_rows])[0] < 1:
                return
            assert x is not None
            self._update(x, steps)
            w = self.field.window
            assert w is not None
            assert w.Y is not None
            w.Y, w.trace, w.weight, *shift = distributed.mean([w.Y, w.trace, w.weight, *self.shift.tensors()])
            self.shift.set_tensors(shift)

    def _update(self, x: Tensor, steps: int) -> None:
        self.field.update(x, steps)
        with torch.autocast(x.device.type, enabled=False):
            self.shift.update(x, steps)

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and numbers only."""
        return {"steps": self.steps, "field": self.field.state_dict(), "shift": self.shift.state_dict()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Load a state onto ``device``."""
        self.steps = state["steps"]
        self.field.load_state_dict(state["field"], device)
        self.shift.load_state_dict(state["shift"], device)

    def _pre_hook(self, watched: nn.Module) -> Callable[..., None]:
        @uncompiled
        def collect(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not watched or not self.in_step or not self._counts(module):
                return  # a copy of the model (hooks are copied with it), evaluation, or checkpoint recomputation
            given = (*args, *kwargs.values())
            x = self._states(module, given)
            if x is not None and x.numel() and (self.wanted or self.due or self._is_other(x)):
                seen = self._sampled(module, given[0], x)
                if module.training:
                    self._rows.append(seen)
                else:
                    self._running = seen
                    self._follow(module)

        return collect

    def _sampled(self, module: nn.Module, given: Tensor, x: Tensor) -> Tensor:
        """Sampled rows of states (..., d), without padding where the model has a mask."""
        real = None if self._padding is None else self._padding.among(module, [given])[0]
        return rows(x.reshape(-1, x.shape[-1]), ROWS, self.steps, real).float().clone()

    def _follow(self, watched: nn.Module) -> None:
        """In evaluation mode, count the rows of a pass once a backward pass trains the layer, or an earlier one."""
        if len(self._handles) > 1:
            return

        @uncompiled
        def ended(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module is watched and self._running is not None:
                one, self._running = [self._running], None
                weights = [p for p in module.parameters() if p.requires_grad]
                on_weight_gradient(output, weights, lambda *_: self._rows.append(one.pop()) if one else None)

        self._handles.append(watched.register_forward_hook(ended))

    def _counts(self, module: nn.Module) -> bool:
        """Whether a forward pass may belong to training; checkpoint recomputation is not counted again."""
        if module.training:
            return not in_backward()
        if not torch.is_grad_enabled() or (in_backward() and self._forward):
            return False
        self._forward = self._forward or not in_backward()
        return True

    def _is_other(self, x: Tensor) -> bool:
        """Whether the states have another width than the field, as those of another network."""
        return self.field.window is not None and self.field.window.d != x.shape[-1]

    def _states(self, module: nn.Module, given: tuple[Any, ...]) -> Tensor | None:
        """A view of the layer's input as states (..., d); None for other inputs of a layer chosen by "auto".

        Raises:
            ValueError: the input of a layer chosen by name is not a dense floating-point tensor.
        """
        x = distributed.local(given[0].detach()) if given and isinstance(given[0], Tensor) else None
        if x is None or not (x.layout == torch.strided and x.is_floating_point() and x.dim() > 0):
            if self.name == AUTO:
                return None
            kind = (
                f"{x.dtype}, {x.layout}, {x.dim()}-d" if x is not None else type(given[0]).__name__ if given else "none"
            )
            raise ValueError(f"Expected field={self.name!r} to name a layer whose input is floats, got {kind}.")
        if isinstance(module, _ConvNd | _NormBase) and x.dim() > 2:
            x = x.movedim(1, -1)  # a state consists of channels
        return x
