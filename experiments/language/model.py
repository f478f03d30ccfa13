"""A small GPT over bytes: LayerNorm first, learned positions, AdamW."""

from collections.abc import Iterator

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

VOCABULARY = 256
LAYERS = ("attend", "out", "up", "down")  # the Linears of a block


class Block(nn.Module):
    """Causal attention and an MLP, both with pre-normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attend(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(self.before_layers(x))))
        return y


class GPT(nn.Module):
    """Maps bytes (batch, length) to logits of each next byte (batch, length, 256)."""

    def __init__(self, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = self.byte(x) + self.place(torch.arange(x.shape[1], device=x.device))
        logits: Tensor = self.head(self.last(self.blocks(h)))
        return logits


def next_byte(net: nn.Module, rows: Tensor) -> Tensor:
    """Mean cross-entropy in nats per byte, over all bytes but the first of each row."""
    return F.cross_entropy(net(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


class LanguageModel(L.LightningModule):
    """Trains a network to predict the next byte, with AdamW and one learning rate."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return next_byte(self, batch)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.learning(), lr=self.lr)

    def learning(self) -> Iterator[nn.Parameter]:
        """The trained weights."""
        return (p for p in self.parameters() if p.requires_grad)
