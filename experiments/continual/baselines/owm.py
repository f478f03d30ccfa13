"""Orthogonal weights modification (Zeng, Chen, Cui & Yu 2019)."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from experiments.continual.baselines.base import Baseline
from experiments.continual.baselines.layers import extended, gradient, linear, set_gradient

CLIP = 10.0  # largest norm of a layer's gradient before it is projected


class Schedule(NamedTuple):
    """``α = start · factor^(share of the task that has passed)``."""

    start: float
    factor: float = 1.0

    def at(self, place: float) -> float:
        """α at a share of the task.

        >>> Schedule(0.5, 0.01).at(0.5)
        0.05
        """
        return self.start * math.pow(self.factor, place)


# Of the first layer, those in between, and the last: as in the authors' code for split and for permuted MNIST.
FALLING = (Schedule(0.9, 0.001), Schedule(1.0, 0.1), Schedule(0.6))
CONSTANT = (Schedule(1.0),) * 3


def shrink(P: Tensor, mean: Tensor, alpha: float) -> None:
    """Take one mean input (d,) out of the projector P (d, d), in place: ``P − P x xᵀ P / (α + xᵀ P x)``.

    With a constant α, from ``P = I``, it is ``α (A Aᵀ + α I)⁻¹`` for the mean inputs A (d, n) so far.
    """
    k = P @ mean
    P.addr_(k, k, alpha=-1 / (alpha + float(mean @ k)))


class OWM(Baseline):
    """Each layer's gradient is multiplied by a projector away from the mean inputs of all batches so far.

    As in the authors' code: the projector takes in each batch's mean input before the step, and biases are weights of a
    constant input. The gradient of n samples is ``δᵀ x``, so its projection is ``δᵀ (x P)``, which costs less than the
    product with the gradient itself.

    Args:
        schedules: of α, for the first layer, those in between and the last one; they begin anew with each task.
    """

    def __init__(self, schedules: Sequence[Schedule] = FALLING) -> None:
        self.first, self.inner, self.last = (Schedule(*schedule) for schedule in schedules)
        self.steps = 0
        self.length: int | None = None  # steps of a task

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.length = getattr(getattr(trainer, "datamodule", None), "steps", None)

    @override
    def begin(self) -> None:
        self.layers = linear(self.model)
        self.P = [torch.eye(extended(m, m.weight[:1]).shape[1], device=m.weight.device) for m in self.layers]
        self.x: dict[nn.Module, Tensor] = {}
        self.deltas: dict[nn.Module, Tensor] = {}
        for layer in self.layers:
            layer.register_forward_hook(self.collect)

    def collect(self, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        """Keep the inputs of a training step, and the gradient at the outputs when it is there."""
        if y.requires_grad:
            self.x[layer] = args[0].detach()
            y.register_hook(lambda delta: self.deltas.__setitem__(layer, delta))  # type: ignore[no-untyped-call]

    @override
    def before_step(self) -> None:
        place = self.steps % self.length / self.length if self.length else 0.0
        for layer, P in zip(self.layers, self.P, strict=True):
            schedule = self.first if P is self.P[0] else self.last if P is self.P[-1] else self.inner
            x, delta = extended(layer, self.x[layer]), self.deltas[layer]
            shrink(P, x.mean(0), schedule.at(place))
            scale = min(1.0, CLIP / max(float(gradient(layer).norm()), 1e-12))
            set_gradient(layer, scale * delta.mT @ (x @ P))
        self.steps += 1

    @override
    def tensors(self) -> Iterable[Tensor]:
        return self.P
