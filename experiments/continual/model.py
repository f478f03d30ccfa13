"""The published network: two hidden layers of ReLU, Adam, cross-entropy over the outputs in play."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from experiments.continual.batches import Batch


class MLP(L.LightningModule):
    """Two hidden layers; ``features`` is the second, ``forward`` all outputs."""

    def __init__(self, inputs: int, outputs: int, width: int = 400, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)

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
        logits = self(batch.x)[:, batch.classes]
        loss = F.cross_entropy(logits, batch.y - batch.classes.start)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.y))
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
