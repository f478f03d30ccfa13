"""The published network: two hidden layers of ReLU, Adam, cross-entropy over the active outputs."""

from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import override

from experiments.continual.batches import Batch

STABLE_LR, STABLE_DECAY = 0.1, 0.8
Objective = Callable[[Tensor, Any, Tensor], Tensor]  # of the loss, the batch (inputs first) and the outputs


def as_it_is(loss: Tensor, batch: Any, logits: Tensor) -> Tensor:
    """The unchanged loss of the batch."""
    return loss


class Model(L.LightningModule):
    """A module whose loss can be changed by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.objective: Objective = as_it_is  # a method's modification of the loss

    def network(self) -> nn.Module:
        """The network, from inputs to outputs."""
        raise NotImplementedError


class MLP(Model):
    """Two hidden layers; ``features`` is the second, ``forward`` all outputs.

    ``optimizer="sgd"`` with dropout is "Stable SGD" (Mirzadeh et al. 2020); its learning rate decreases with each task.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 400,
        lr: float = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.lr, self.optimizer = lr, optimizer
        drop = [nn.Dropout(dropout)] if dropout else []
        self.body = nn.Sequential(
            *(nn.Linear(inputs, width), nn.ReLU(), *drop),
            *(nn.Linear(width, width), nn.ReLU(), *drop),
        )
        self.head = nn.Linear(width, outputs)

    @override
    def network(self) -> nn.Module:
        return nn.Sequential(self.body, self.head)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer."""
        hidden: Tensor = self.body(x)
        return hidden

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch.x)
        loss = F.cross_entropy(logits[:, batch.classes], batch.y - batch.classes.start)
        loss = self.objective(loss, batch, logits)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.y))
        return loss

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.lr)
        sgd = torch.optim.SGD(self.parameters(), lr=STABLE_LR)
        steps = self.trainer.datamodule.steps  # type: ignore[attr-defined]
        falls = torch.optim.lr_scheduler.StepLR(sgd, step_size=steps, gamma=STABLE_DECAY)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": falls, "interval": "step"}}
