"""How strongly the loss pulls at a layer's output, by its gradient there: it follows the loss of every batch."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from sal_lightning.compiling import uncompiled
from sal_lightning.fisher import Fisher
from sal_lightning.readback import Readback
from sal_lightning.scaling import scales
from sal_lightning.surroundings import in_backward, on_weight_gradient, tensors


class OutputGradient:
    """``Σ ‖∂L/∂y‖`` over the samples ``y`` of the output of one layer, summed over the passes of a step.

    For a loss that is a mean over the samples this is the mean size of a sample's own gradient; unlike the gradient of
    a weight it does not cancel out.

    Args:
        scaler: the loss scaler of 16-bit training: the gradient is divided by its scale.
        fisher: is shown this gradient in the steps in which it is due.
    """

    def __init__(self, scaler: GradScaler | None = None, fisher: Fisher | None = None) -> None:
        self.scaler, self.fisher = scaler, fisher
        # Of this step's passes, where their outputs stand in the graph. A hook that had them would never be freed.
        self._edges: dict[int, list[GradientEdge]] = {}
        self.module: nn.Module | None = None
        self.in_step = True  # whether a training step is running
        self.total: Tensor | None = None  # of this step
        self._answer: Readback | None = None  # the same, on its way from the device
        self._handle: RemovableHandle | None = None

    def follow(self, module: nn.Module | None) -> None:
        """Look at the output of this layer from now on, and no longer at that of another."""
        self.remove()
        self.module = module
        if module is not None:
            self._handle = module.register_forward_hook(self._ended)

    def remove(self) -> None:
        """Stop looking."""
        if self._handle is not None:
            self._handle.remove()
        self.module = self._handle = None
        self.forget_step()

    def forget_step(self) -> None:
        """Drop what was gathered in this step."""
        self.total = self._answer = None
        self._edges.clear()

    def read(self) -> float | None:
        """The sum of this step; None where no gradient came."""
        return None if self._answer is None else self._answer.read()[0]

    @property
    def _ended(self) -> Any:
        @uncompiled
        def ended(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module is not self.module or not self.in_step or in_backward():
                return  # a copy of the model: hooks are copied with it; evaluation; run again for its activations
            if torch.is_grad_enabled():
                weights = [p for p in module._parameters.values() if p is not None and p.requires_grad]
                number = len(self._edges)
                due = self.fisher is not None and self.fisher.due
                self._edges[number] = [get_gradient_edge(x) for x in tensors(output)] if due else []
                on_weight_gradient(output, weights, partial(self._add, number))

        return ended

    def _add(self, number: int, grad: Tensor, place: int) -> None:
        if not grad.numel():
            return
        edges = self._edges.get(number, [])
        if edges and self.fisher is not None:
            scale = self.scaler.scale(torch.ones((), device=grad.device)) if scales(self.scaler) else None
            self.fisher.see(edges[place], grad, scale, tokens=isinstance(self.module, nn.Linear))
        samples = grad.detach().flatten(1) if grad.dim() > 1 else grad.detach()
        found = torch.linalg.vector_norm(samples.float(), dim=-1).sum()
        if scales(self.scaler):
            found = found / self.scaler.scale(torch.ones_like(found))
        self.total = found if self.total is None else self.total + found
        self._answer = Readback(self.total[None])
