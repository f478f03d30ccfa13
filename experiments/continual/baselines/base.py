"""What the methods beside SAL have in common: they are told where a task ends."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from experiments.continual.model import MLP
from experiments.continual.streams import Task


class Baseline(Callback):
    """``learned`` is called at the end of each task but the last; ``before_step`` may change the gradients."""

    model: MLP
    task: int  # that is being learned, from 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.model, self.task = cast(MLP, pl_module), 0
        self.begin()

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
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.task, ended = divmod(batch_idx + 1, data.steps)
        if ended == 0 and self.task < len(data.stream.tasks):
            self.learned(data.stream.tasks[: self.task])

    @property
    def W(self) -> list[Tensor]:
        """The weights, themselves."""
        return list(self.model.parameters())

    @property
    def G(self) -> list[Tensor]:
        """The gradients, themselves; zero where there was none."""
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def begin(self) -> None:
        """Look at the model before its first step."""

    def before_step(self) -> None:
        """Change the gradients."""

    def after_step(self) -> None:
        """See where the step led."""

    def learned(self, tasks: Sequence[Task]) -> None:
        """The last of these tasks has been learned."""


class Pull(Baseline):
    """A quadratic penalty ``½ λ Σ F (W − W*)²``: what is important is pulled back to where it was."""

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
        """From now on towards the weights of now."""
        torch._foreach_copy_(self.anchor, self.W)
