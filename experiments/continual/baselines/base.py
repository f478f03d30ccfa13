"""Base classes of the baselines, which receive the task boundaries."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from experiments.continual.streams import Task


class Baseline(Callback):
    """``learned`` is called at the end of each task but the last; ``before_step`` may change the gradients.

    A data module with a stream defines the ends of tasks; without one, call ``end_task``.
    """

    model: LightningModule
    task: int  # index of the current task
    started = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.started:  # unless continued from an earlier fit
            self.start(pl_module)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.before_step()

    @override
    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.after_step()
        data = getattr(trainer, "datamodule", None)
        if data is not None:
            tasks, rest = divmod(batch_idx + 1, data.steps)
            if rest == 0 and tasks < len(data.stream.tasks):
                self.end_task(data.stream.tasks[:tasks])

    def start(self, model: LightningModule) -> None:
        """Begin with the first task."""
        self.model, self.task, self.started = model, 0, True
        self.begin()

    @torch.no_grad()
    def end_task(self, tasks: Sequence[Task] = ()) -> None:
        """End the current task.

        Args:
            tasks: all tasks learned so far, for methods that need their data.
        """
        self.task += 1
        self.learned(tasks)

    @property
    def W(self) -> list[Tensor]:
        """The trained weights, not copied."""
        return list(self.model.parameters())

    @property
    def G(self) -> list[Tensor]:
        """Their gradients, not copied; missing ones are set to zero."""
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def begin(self) -> None:
        """Called before the first step."""

    def before_step(self) -> None:
        """Called before each optimizer step; may change the gradients."""

    def after_step(self) -> None:
        """Called after each optimizer step."""

    def learned(self, tasks: Sequence[Task]) -> None:
        """Called at the end of each task but the last, with all tasks so far."""

    def tensors(self) -> Iterable[Tensor]:
        """All tensors kept between steps."""
        return ()


class QuadraticPenalty(Baseline):
    """``½ λ Σ F (W − W*)²``: pulls weights back to an anchor W*, by their importance F."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    @override
    def begin(self) -> None:
        self.F = [torch.zeros_like(p) for p in self.W]
        self.anchor = [p.detach().clone() for p in self.W]  # W*

    @override
    def before_step(self) -> None:
        if self.task:
            pull = torch._foreach_sub(self.W, self.anchor)
            torch._foreach_mul_(pull, self.F)
            torch._foreach_add_(self.G, pull, alpha=self.strength)

    def move_anchor(self) -> None:
        """Set the anchor to the current weights."""
        torch._foreach_copy_(self.anchor, self.W)

    @override
    def tensors(self) -> Iterable[Tensor]:
        return [*self.F, *self.anchor]
