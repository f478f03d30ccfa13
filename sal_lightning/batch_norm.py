"""Running statistics of batch normalization: kept fixed, and used for normalization, once something is held."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils.hooks import RemovableHandle

from sal_lightning import distributed
from sal_lightning.layers import plain_name
from sal_lightning.torch_compile import uncompiled


class _Call(NamedTuple):
    """The buffers and momentum of a layer, reassigned after its forward pass."""

    mean: Tensor | None
    variance: Tensor | None
    batches: Tensor | None
    momentum: float | None


class RunningStatistics:
    """Layers with running statistics (BatchNorm, SyncBatchNorm, InstanceNorm that tracks them) of one model.

    Held weights were learned under the statistics of their data. Once something is held, a training pass does not
    update the statistics and is normalised by them, as in evaluation. The gradient is that of normalising by the
    batch: Batch Renormalization (Ioffe 2017) without bounds on its correction; InstanceNorm also has the gradient of
    evaluation. A pass without gradients, such as that of ``torch.optim.swa_utils.update_bn``, is not affected. Layers
    that are added later update their statistics until the next consolidation.
    """

    def __init__(self) -> None:
        self.kept = set[str]()  # names of layers whose statistics are kept
        self.suspended = False  # whether the statistics of all layers are kept, while a change is suspected
        self._names: dict[nn.Module, str] = {}
        self._before: dict[nn.Module, list[Tensor]] = {}  # statistics at the beginning of this step
        self._handles: list[RemovableHandle] = []
        self._calls: dict[nn.Module, _Call] = {}  # layers that are in a forward pass
        self._in_evaluation = set[nn.Module]()  # layers in evaluation mode during a forward pass

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
        for module in [*self._in_evaluation, *self._calls]:
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
                self._substitute(module)
            elif module not in self._before:
                self._before[module] = [x.clone() for x in _statistics(module)]

        return enter

    def _leave(self, watched: nn.Module) -> Callable[..., None]:
        @uncompiled
        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if module is not watched:
                return None
            call = self._calls.get(module)
            kept: Any = module
            mean, variance = kept.running_mean, kept.running_var
            self._reset(module)
            return (
                None if call is None or not args[0].numel() else renormalised(module, args[0], output, mean, variance)
            )

        return leave

    def _substitute(self, module: Any) -> None:
        """During a forward pass: set buffers that take the batch's own statistics, or evaluation mode."""
        if not isinstance(module, _BatchNorm):
            module.training = False
            self._in_evaluation.add(module)
            return
        call = _Call(module.running_mean, module.running_var, module.num_batches_tracked, module.momentum)
        self._calls[module] = call
        module.running_mean, module.running_var, module.num_batches_tracked = (
            None if x is None else torch.zeros_like(x) for x in call[:3]
        )
        module.momentum = 1.0

    def _reset(self, module: Any) -> None:
        if module in self._in_evaluation:
            self._in_evaluation.discard(module)
            module.training = True
        if (call := self._calls.pop(module, None)) is not None:
            module.running_mean, module.running_var, module.num_batches_tracked, module.momentum = call


def renormalised(module: Any, x: Tensor, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Converts the output ``y``, normalised by the batch, to one normalised by the running statistics of ``module``.

    Returns ``(y − bias) r + weight d + bias``, where ``r = σ_B / σ`` and ``d = (μ_B − μ) / σ`` have no gradient.

    Args:
        module: a batch normalization.
        x: (batch, channels, ...), its input.
        y: its output, normalised by the statistics of the batch.
        mean: (channels,) of the batch, μ_B.
        variance: (channels,) of the batch, divided by the number of values less one.
    """
    shape = (1, -1, *[1] * (x.dim() - 2))
    n = x.numel() // x.shape[1]
    n *= distributed.count() if isinstance(module, nn.SyncBatchNorm) else 1
    with torch.no_grad():
        deviation = (module.running_var + module.eps).sqrt()
        r = ((variance * ((n - 1) / n) + module.eps).sqrt() / deviation).view(shape)
        d = ((mean - module.running_mean) / deviation).view(shape)
    weight, bias = (module.weight.view(shape), module.bias.view(shape)) if module.affine else (1.0, 0.0)
    out: Tensor = (y - bias) * r + weight * d + bias
    return out.to(y.dtype)


def _tracks(module: _NormBase) -> bool:
    return module.track_running_stats and module.running_mean is not None


def _statistics(module: Any) -> list[Tensor]:
    return [x for x in (module.running_mean, module.running_var, module.num_batches_tracked) if x is not None]
