"""The published networks: hidden layers of ReLU, Adam or SGD, cross-entropy over the active outputs."""

from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import override

from experiments.continual.batches import Batch

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
    """Hidden layers of ReLU; ``features`` is the last of them, ``forward`` all outputs.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        width: units of each hidden layer.
        lr: learning rate.
        optimizer: ``"adam"``, or ``"sgd"`` with the given momentum.
        dropout: share of hidden units that are dropped in training.
        layers: number of hidden layers.
        bias: whether layers have biases.
        momentum: of SGD.
        decay: factor of the learning rate at the end of each task.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 400,
        lr: float = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        dropout: float = 0.0,
        layers: int = 2,
        bias: bool = True,
        momentum: float = 0.0,
        decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.lr, self.optimizer, self.momentum, self.decay = lr, optimizer, momentum, decay
        sizes = [inputs, *[width] * layers]
        drop = [nn.Dropout(dropout)] if dropout else []
        hidden = [[nn.Linear(*size, bias=bias), nn.ReLU(), *drop] for size in pairwise(sizes)]
        self.body = nn.Sequential(*chain.from_iterable(hidden))
        self.head = nn.Linear(width, outputs, bias=bias)

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
        made: torch.optim.Optimizer = (
            torch.optim.Adam(self.parameters(), lr=self.lr)
            if self.optimizer == "adam"
            else torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)
        )
        if self.decay == 1:
            return made
        steps = self.trainer.datamodule.steps  # type: ignore[attr-defined]
        falls = torch.optim.lr_scheduler.StepLR(made, step_size=steps, gamma=self.decay)
        return {"optimizer": made, "lr_scheduler": {"scheduler": falls, "interval": "step"}}
