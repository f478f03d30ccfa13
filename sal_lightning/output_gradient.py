"""Norm of the loss gradient at a layer's output: a proxy of the loss of every batch."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from sal_lightning.async_copy import Readback
from sal_lightning.fisher import Fisher
from sal_lightning.forward_hooks import in_backward, on_weight_gradient, tensors
from sal_lightning.grad_scaler import scales
from sal_lightning.logit_adjustment import LogitAdjustment
from sal_lightning.torch_compile import uncompiled


class OutputGradient:
    """``Σ ‖∂L/∂y‖`` over the samples ``y`` of the output of one layer, summed over the passes of a step.

    For a loss averaged over samples this is the mean norm of the per-sample gradients, which do not cancel as they do
    in the gradient of a weight.

    Args:
        scaler: the loss scaler of 16-bit training; the gradient is divided by its scale.
        fisher: collects from this gradient in the steps in which it is due.
        adjustment: records targets from this gradient, and may change it.
    """

    def __init__(
        self, scaler: GradScaler | None = None, fisher: Fisher | None = None, adjustment: LogitAdjustment | None = None
    ) -> None:
        self.scaler, self.fisher, self.adjustment = scaler, fisher, adjustment
        self.predicts = False  # whether predictions count as targets
        # Gradient edges of the outputs of this step's passes; a hook holding them would be a reference cycle.
        self._edges: dict[int, list[GradientEdge]] = {}
        self.module: nn.Module | None = None
        self.in_step = True  # whether a training step is running
        self.total: Tensor | None = None  # the sum of this step
        self._readback: Readback | None = None  # the sum, while it is copied from the device
        self._handle: RemovableHandle | None = None

    def follow(self, module: nn.Module | None) -> None:
        """Hook the output of this layer, instead of the one before; None hooks none."""
        self._unhook()
        self.module = module
        if module is not None:
            self._handle = module.register_forward_hook(self._forward_hook)

    def remove(self) -> None:
        """Remove the hook."""
        self._unhook()
        self.discard_step()

    def _unhook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self.module = self._handle = None

    def resume(self, total: Tensor | None) -> None:
        """Continue in the midst of a step, with its sum so far."""
        self.total, self._readback = total, None if total is None else Readback(total[None])

    def discard_step(self) -> None:
        """Drop what was collected in this step."""
        self.total = self._readback = None
        self._edges.clear()

    def read(self) -> float | None:
        """The sum of this step; None if no gradient was computed."""
        return None if self._readback is None else self._readback.read()[0]

    @property
    def _forward_hook(self) -> Any:
        @uncompiled
        def ended(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module is not self.module or not self.in_step or in_backward():
                return  # a copy of the model (hooks are copied), evaluation, or checkpoint recomputation
            if torch.is_grad_enabled():
                weights = [p for p in module._parameters.values() if p is not None and p.requires_grad]
                number = len(self._edges)
                due = self.fisher is not None and self.fisher.due and not self.predicts
                self._edges[number] = [get_gradient_edge(x) for x in tensors(output)] if due else []
                adjusts = self.adjustment is not None and self.adjustment.holds(module) and not self.predicts
                logits = [x.detach() for x in tensors(output)] if adjusts else []
                changes: list[Tensor] = []
                if adjusts and args and isinstance(args[0], Tensor) and args[0].requires_grad:
                    args[0].register_hook(partial(self._adjust_input_gradient, module, changes))  # type: ignore[no-untyped-call]
                if self.predicts and self.adjustment is not None:
                    for x in tensors(output):
                        self.adjustment.collect_predictions(module, x.detach())
                on_weight_gradient(output, weights, partial(self._add, number, logits, changes))

        return ended

    def _add(self, number: int, logits: Sequence[Tensor], changes: list[Tensor], grad: Tensor, place: int) -> None:
        if not grad.numel() or self.module is None:
            return
        change = None
        if self.adjustment is not None and not self.predicts and not torch.is_grad_enabled():  # no second derivatives
            change = self.adjustment.adjust(self.module, grad.detach(), logits[place] if logits else None)
        edges = self._edges.get(number, [])
        if edges and self.fisher is not None:
            scale = self.scaler.scale(torch.ones((), device=grad.device)) if scales(self.scaler) else None
            self.fisher.collect(
                edges[place],
                grad if change is None else grad + change,
                scale,
                tokens=isinstance(self.module, nn.Linear),
            )
        samples = grad.detach().flatten(1) if grad.dim() > 1 else grad.detach()
        found = torch.linalg.vector_norm(samples.float(), dim=-1).sum()
        if scales(self.scaler):
            found = found / self.scaler.scale(torch.ones_like(found))
        self.total = found if self.total is None else self.total + found
        self._readback = Readback(self.total[None])
        if change is not None:
            changes.append(change)

    def _adjust_input_gradient(self, module: nn.Module, changes: list[Tensor], grad: Tensor) -> Tensor | None:
        """Pass the adjusted gradient to the layers before the last one, whose own gradient is unchanged."""
        if not changes:
            return None
        weight: Tensor = module.weight.detach()  # type: ignore[operator]
        return grad + (changes.pop().to(weight.dtype) @ weight).to(grad.dtype)
