"""Running statistics of batch normalization: kept, and normalised by, where something is held."""

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
    """What a layer has back after a forward pass."""

    mean: Tensor | None
    variance: Tensor | None
    batches: Tensor | None
    momentum: float | None


class RunningStatistics:
    """Layers with running statistics (BatchNorm, SyncBatchNorm, InstanceNorm that tracks them) of one model.

    What is held was learned under the statistics of its data. Once it is held, a training pass leaves them as they are
    and is normalised by them, as evaluation is. Its gradient is that of normalising by the batch: Batch Renormalization
    (Ioffe 2017) without bounds on its correction. InstanceNorm has the gradient of evaluation too. A pass without
    gradients, as of ``torch.optim.swa_utils.update_bn``, goes on as always. Layers that are added later run until the
    next consolidation.
    """

    def __init__(self) -> None:
        self.kept = set[str]()  # names of layers whose statistics are kept
        self.suspended = False  # whether those of all are, while a change is suspected
        self._names: dict[nn.Module, str] = {}
        self._before: dict[nn.Module, list[Tensor]] = {}  # statistics at the beginning of this step
        self._handles: list[RemovableHandle] = []
        self._calls: dict[nn.Module, _Call] = {}  # layers that are in a forward pass
        self._lent = set[nn.Module]()  # layers in evaluation mode for the length of one

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
        for module in [*self._lent, *self._calls]:
            self._return(module)
        self.discard_step()

    def keep(self) -> None:
        """Something was consolidated: the statistics that go with it are those of now."""
        self.kept = set(self._names.values())

    def put_back(self) -> None:
        """This step's batch is not to count."""
        for module, before in self._before.items():
            for now, then in zip(_statistics(module), before, strict=True):
                now.copy_(then)

    def end_step(self, familiar: bool, suspended: bool) -> None:
        """After a step was analyzed: undo the update of the statistics by a batch that is not familiar."""
        self.suspended = suspended
        if not familiar:
            self.put_back()
        self.discard_step()

    def discard_step(self) -> None:
        """The step is over."""
        self._before.clear()

    def _enter(self, watched: nn.Module) -> Callable[..., None]:
        @uncompiled
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            if module is not watched:
                return
            self._return(module)  # from a pass that an exception ended
            if not module.training or not torch.is_grad_enabled():
                return
            if self.suspended or self._names[module] in self.kept:
                self._lend(module)
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
            self._return(module)
            return (
                None if call is None or not args[0].numel() else renormalised(module, args[0], output, mean, variance)
            )

        return leave

    def _lend(self, module: Any) -> None:
        """For the length of a forward pass: buffers that take the batch's own statistics, or evaluation mode."""
        if not isinstance(module, _BatchNorm):
            module.training = False
            self._lent.add(module)
            return
        call = _Call(module.running_mean, module.running_var, module.num_batches_tracked, module.momentum)
        self._calls[module] = call
        module.running_mean, module.running_var, module.num_batches_tracked = (
            None if x is None else torch.zeros_like(x) for x in call[:3]
        )
        module.momentum = 1.0

    def _return(self, module: Any) -> None:
        if module in self._lent:
            self._lent.discard(module)
            module.training = True
        if (call := self._calls.pop(module, None)) is not None:
            module.running_mean, module.running_var, module.num_batches_tracked, module.momentum = call


def renormalised(module: Any, x: Tensor, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """The output ``y`` for ``x``, normalised by the batch, as it is by the running statistics of ``module``.

    ``r = σ_B / σ`` and ``d = (μ_B − μ) / σ`` are constants to the gradient: ``(y − bias) r + weight d + bias``.

    Args:
        module: a batch normalization.
        x: (batch, channels, ...), its input.
        y: its output for the statistics of the batch.
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
