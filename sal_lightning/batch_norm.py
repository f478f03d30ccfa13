"""Running statistics of batch normalization: kept fixed, and used for normalization, once something is held."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from sal_lightning.layers import plain_name
from sal_lightning.torch_compile import uncompiled


class RunningStatistics:
    """Layers with running statistics (BatchNorm, SyncBatchNorm, InstanceNorm that tracks them) of one model.

    Held weights were learned under the statistics of their data. Once something is held, these layers are in
    evaluation mode during a training pass: it is normalised by the statistics and does not update them. A pass without
    gradients, such as that of ``torch.optim.swa_utils.update_bn``, is not affected. Layers that are added later update
    their statistics until the next consolidation.
    """

    def __init__(self) -> None:
        self.kept = set[str]()  # names of layers whose statistics are kept
        self.suspended = False  # whether the statistics of all layers are kept, while a change is suspected
        self._names: dict[nn.Module, str] = {}
        self._before: dict[nn.Module, list[Tensor]] = {}  # statistics at the beginning of this step
        self._handles: list[RemovableHandle] = []
        self._in_evaluation = set[nn.Module]()  # layers in a forward pass that are in evaluation mode for it

    def begin(self, model: nn.Module) -> None:
        """Hook the layers of this model that have running statistics."""
        self.end()
        self._names = {m: plain_name(n) for n, m in model.named_modules() if isinstance(m, _NormBase) and _tracks(m)}
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._enter(module)))
            self._handles.append(module.register_forward_hook(self._leave(module)))

    def end(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in [*self._in_evaluation]:
            self._reset(module)
        self.discard_step()

    def keep(self) -> None:
        """Keep the current statistics of all layers, after a consolidation."""
        self.kept = set(self._names.values())

    def put_back(self) -> None:
        """Undo this step's update of the statistics."""
        for module, before in self._before.items():
            for now, then in zip(_statistics(module), before, strict=True):
                now.copy_(then)

    def end_step(self, familiar: bool, suspended: bool) -> None:
        """End an analyzed step: undo the update of the statistics if the batch is not familiar."""
        self.suspended = suspended
        if not familiar:
            self.put_back()
        self.discard_step()

    def discard_step(self) -> None:
        """Drop the statistics saved at the beginning of the step."""
        self._before.clear()

    def _enter(self, watched: nn.Module) -> Callable[..., None]:
        @uncompiled
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            if module is not watched:
                return
            self._reset(module)  # an exception may have ended the last pass
            if not module.training or not torch.is_grad_enabled():
                return
            if self.suspended or self._names[module] in self.kept:
                self._in_evaluation.add(module)
                module.training = False
            elif module not in self._before:
                self._before[module] = [x.clone() for x in _statistics(module)]

        return enter

    def _leave(self, watched: nn.Module) -> Callable[..., None]:
        @uncompiled
        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module is watched:
                self._reset(module)

        return leave

    def _reset(self, module: nn.Module) -> None:
        """End the evaluation mode of a forward pass."""
        if module in self._in_evaluation:
            self._in_evaluation.remove(module)
            module.training = True


def _tracks(module: _NormBase) -> bool:
    return module.track_running_stats and module.running_mean is not None


def _statistics(module: Any) -> list[Tensor]:
    return [x for x in (module.running_mean, module.running_var, module.num_batches_tracked) if x is not None]
