"""What keeps old tasks by other means, written to be fast: SAL is compared with what a careful user would have."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from benchmarks.workloads import Workload


class Method(Callback):
    """Works on the gradients between ``backward`` and the optimizer's step."""

    def __init__(self, model: Workload) -> None:
        self.model = model
        self.W: list[Tensor] = list(model.parameters())

    @property
    def G(self) -> list[Tensor]:
        """The gradients, themselves."""
        return [p.grad for p in self.W if p.grad is not None]

    def consolidate(self) -> None:
        """The first task ends here."""
        raise NotImplementedError

    def tensors(self) -> Iterable[Tensor]:
        """Everything kept from step to step."""
        raise NotImplementedError

    def before_step(self) -> None:
        """Change the gradients."""

    def after_step(self) -> None:
        """See where the step led."""

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.before_step()

    @override
    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after_step()


class EWC(Method):
    """Elastic weight consolidation (Kirkpatrick et al. 2017): ``G ← G + λ F (W − W*)``."""

    STRENGTH = 1.0

    def __init__(self, model: Workload) -> None:
        super().__init__(model)
        self.F: list[Tensor] = []  # Σ G² over the first task, then λ times its mean
        self.anchor: list[Tensor] = []  # W*
        self.steps = 0

    @override
    def before_step(self) -> None:
        if not self.anchor:
            self.F, self.steps = self.F or [torch.zeros_like(g) for g in self.G], self.steps + 1
            torch._foreach_addcmul_(self.F, self.G, self.G)
            return
        pull = torch._foreach_sub(self.W, self.anchor)
        torch._foreach_mul_(pull, self.F)
        torch._foreach_add_(self.G, pull)

    @override
    def consolidate(self) -> None:
        torch._foreach_mul_(self.F, self.STRENGTH / self.steps)
        self.anchor = [p.clone() for p in self.W]

    @override
    def tensors(self) -> Iterable[Tensor]:
        return [*self.F, *self.anchor]


class SI(Method):
    """Synaptic intelligence (Zenke et al. 2017): ``ω ← ω − G ΔW`` each step, ``G ← G + 2c Ω (W − W*)`` afterwards."""

    STRENGTH, DAMPING = 0.1, 0.1

    def __init__(self, model: Workload) -> None:
        super().__init__(model)
        zeros = [torch.zeros_like(p, device=model.batches[0][0].device) for p in self.W]
        self.omega, self.before, self.task = (copy.deepcopy(zeros) for _ in range(3))  # ω; W and G of this step
        self.start = [p.detach().to(z.device, copy=True) for p, z in zip(self.W, zeros, strict=True)]
        self.anchor: list[Tensor] = []
        self.importance: list[Tensor] = []  # 2c Ω

    @override
    def before_step(self) -> None:
        torch._foreach_copy_(self.before, self.W)
        torch._foreach_copy_(self.task, self.G)
        if self.anchor:
            pull = torch._foreach_sub(self.W, self.anchor)
            torch._foreach_mul_(pull, self.importance)
            torch._foreach_add_(self.G, pull)

    @override
    def after_step(self) -> None:
        torch._foreach_sub_(self.before, self.W)  # −ΔW
        torch._foreach_addcmul_(self.omega, self.task, self.before)

    @override
    def consolidate(self) -> None:
        self.anchor = [p.clone() for p in self.W]
        self.importance = [
            2 * self.STRENGTH * omega.clamp(min=0) / ((end - start).square() + self.DAMPING)
            for omega, end, start in zip(self.omega, self.anchor, self.start, strict=True)
        ]
        torch._foreach_zero_(self.omega)
        self.start = self.anchor

    @override
    def tensors(self) -> Iterable[Tensor]:
        return [*self.omega, *self.before, *self.task, *self.anchor, *self.importance]


class LwF(Method):
    """Learning without forgetting (Li & Hoiem 2016): the first task's network runs on each batch and is imitated."""

    TEMPERATURE = 2.0

    def __init__(self, model: Workload) -> None:
        super().__init__(model)
        self.teacher: nn.Module | None = None

    def imitate(self, x: Tensor, out: Tensor) -> Tensor:
        """Cross-entropy to the teacher's softened outputs: their divergence, but for a constant."""
        assert self.teacher is not None
        with torch.no_grad():
            goal = (self.teacher(x) / self.TEMPERATURE).softmax(-1)
        loss = F.cross_entropy((out / self.TEMPERATURE).flatten(0, -2), goal.flatten(0, -2))
        return self.TEMPERATURE**2 * loss

    @override
    def consolidate(self) -> None:
        self.teacher = copy.deepcopy(self.model.net).eval().requires_grad_(False)
        self.model.penalty = self.imitate

    @override
    def tensors(self) -> Iterable[Tensor]:
        return [] if self.teacher is None else [*self.teacher.parameters(), *self.teacher.buffers()]
