"""Workloads: an MLP, a small ConvNet and a GPT-2, on random batches kept in memory."""

from collections.abc import Callable
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.utils.data import DataLoader
from typing_extensions import override

from benchmarks.settings import Setting
from experiments.continual.model import Model

Batch = tuple[Tensor, Tensor]
POOL = 16  # number of different batches, used cyclically


class Workload(Model):
    """A network, its batches, and an optimizer that is kept across fits."""

    def __init__(self, net: nn.Module, batches: list[Batch], adam: type[Optimizer], lr: float) -> None:
        super().__init__()
        self.net, self.batches = net, batches
        self.adam = adam(net.parameters(), lr=lr)  # type: ignore[call-arg]

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x)
        loss = F.cross_entropy(out.flatten(0, -2), y.flatten())
        return self.objective(loss, batch, out)

    @override
    def network(self) -> nn.Module:
        return self.net

    @override
    def configure_optimizers(self) -> Optimizer:
        return self.adam

    def loader(self, steps: int) -> DataLoader[Batch]:
        """A loader of ``steps`` batches that are already collated and on the device."""
        return DataLoader(list(islice(cycle(self.batches), steps)), batch_size=None)  # type: ignore[arg-type]


def mlp(setting: Setting) -> Workload:
    """784-400-400-10, batches of 128, Adam."""
    net = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    return Workload(net, _pictures(setting.device, 128, (784,)), Adam, lr=1e-3)


def convnet(setting: Setting) -> Workload:
    """Three convolutions of 3x32x32 inputs, each normalized and halved, and two linear layers; batches of 64, Adam."""

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, 10)]
    net = nn.Sequential(*stage(3, 32), *stage(32, 64), *stage(64, 128), *head)
    return Workload(net, _pictures(setting.device, 64, (3, 32, 32)), Adam, lr=1e-3)


def gpt(setting: Setting) -> Workload:
    """GPT-2 of the given shape, AdamW."""
    shape = (POOL, setting.sequences, setting.context + 1)
    tokens = torch.randint(setting.vocab, shape).to(setting.device)
    return Workload(GPT(setting), [(t[:, :-1], t[:, 1:]) for t in tokens], AdamW, lr=3e-4)


class Block(nn.Module):
    """Attention and MLP, each with pre-normalization and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed

    def attend(self, x: Tensor) -> Tensor:
        """Causal attention over (sequences, context, width)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return out


class GPT(nn.Module):
    """Token and position embeddings, blocks, a norm, and an output layer tied to the token embedding."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        width = setting.width
        self.tokens, self.places = nn.Embedding(setting.vocab, width), nn.Embedding(setting.context, width)
        self.blocks = nn.Sequential(*(Block(width, setting.heads) for _ in range(setting.depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, setting.vocab, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        self.head.weight = self.tokens.weight

    @override
    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        logits: Tensor = self.head(self.norm(self.blocks(self.tokens(x) + self.places(places))))
        return logits


def _pictures(device: str, batch: int, shape: tuple[int, ...]) -> list[Batch]:
    """Random fields with the power spectrum of photographs, since white noise has no dominant directions."""
    side = shape[-1] if len(shape) == 3 else int(shape[-1] ** 0.5)
    frequency = torch.cartesian_prod(torch.fft.fftfreq(side), torch.fft.rfftfreq(side)).norm(dim=1).view(side, -1)

    def fields() -> Tensor:
        noise = torch.fft.rfft2(torch.randn(batch, *shape[:-2], side, side))
        x = torch.fft.irfft2(noise / (frequency + 1 / side), s=(side, side)).view(batch, *shape)
        scaled: Tensor = x / x.std()
        return scaled.to(device)

    return [(fields(), torch.randint(10, (batch,)).to(device)) for _ in range(POOL)]


WORKLOADS: dict[str, Callable[[Setting], Workload]] = {"mlp": mlp, "convnet": convnet, "gpt": gpt}
