"""Small networks of many kinds, from images as rows of pixels (n, side²) to logits (n, 10).

Those in ``NOISED`` take noised images and the noise level, (n,) in [0, 1]; ``denoiser`` predicts the noise, (n, side²).
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from experiments.networks.mobilenet import Pretrained

CLASSES = 10
Norm = Callable[[int], nn.Module]


class Images(nn.Module):
    """Rows of pixels as one-channel images (n, 1, side, side), averaged over squares of ``pool`` pixels."""

    def __init__(self, side: int, pool: int = 1) -> None:
        super().__init__()
        self.side, self.pool = side, pool

    @override
    def forward(self, x: Tensor) -> Tensor:
        images = x.view(-1, 1, self.side, self.side)
        return nn.functional.avg_pool2d(images, self.pool) if self.pool > 1 else images


def group_norm(channels: int) -> nn.Module:
    """Groups of four channels."""
    return nn.GroupNorm(channels // 4, channels)


# --- fully connected ---


def mlp(side: int, width: int = 400) -> nn.Module:
    """Two hidden layers of ReLU."""
    hidden = nn.Linear(side * side, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


# --- convolutions ---


def convnet(side: int, norm: Norm) -> nn.Module:
    """Two 3×3 convolutions, each normalised and pooled, and two linear layers."""
    parts: list[nn.Module] = [Images(side)]
    for inputs, outputs in ((1, 16), (16, 32)):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    flat = 32 * (side // 4) ** 2
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def separable(side: int) -> nn.Module:
    """Depthwise 3×3 convolutions, each followed by a pointwise one (Howard et al. 2017); the mean over the image."""
    parts: list[nn.Module] = [Images(side), nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs, stride in ((16, 32, 1), (32, 64, 2), (64, 64, 1)):
        parts += [nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs), nn.BatchNorm2d(inputs), nn.ReLU()]
        parts += [nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class Residual(nn.Module):
    """Two normalised 3×3 convolutions, added to their input (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(side: int) -> nn.Module:
    """A convolution, three residual blocks and the mean over the image."""
    first = Images(side), nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    blocks = Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


# --- sequences ---


def encoder(width: int, layers: int = 2) -> nn.Module:
    """Transformer blocks, normalised before each part, without dropout."""
    block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)


class ViT(nn.Module):
    """Square patches as tokens (Dosovitskiy et al. 2021); the mean over them is classified."""

    def __init__(self, side: int, patch: int, pool: int = 1, width: int = 64) -> None:
        super().__init__()
        self.images = Images(side, pool)
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn((side // pool // patch) ** 2, width))
        self.encoder, self.head = encoder(width), nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(self.images(x)).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.encoder(tokens + self.position).mean(1))
        return logits


class Recurrent(nn.Module):
    """The image's rows as a sequence; the state after the last one is classified."""

    def __init__(self, side: int, kind: type[nn.GRU] | type[nn.LSTM], width: int = 128) -> None:
        super().__init__()
        self.side = side
        self.cell, self.head = kind(side, width, batch_first=True), nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x.view(-1, self.side, self.side))
        logits: Tensor = self.head(states[:, -1])
        return logits


class PositionFirst(nn.Module):
    """A transformer over the image's rows whose first layer is the embedding of positions."""

    def __init__(self, side: int, width: int = 64) -> None:
        super().__init__()
        self.side = side
        self.position, self.rows = nn.Embedding(side, width), nn.Linear(side, width)
        self.encoder, self.head = encoder(width), nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Tensor) -> Tensor:
        places = self.position(torch.arange(self.side, device=x.device).expand(len(x), self.side))
        logits: Tensor = self.head(self.encoder(places + self.rows(x.view(-1, self.side, self.side))).mean(1))
        return logits


# --- conditioned on the noise level ---


class NoiseLevel(nn.Module):
    """Embeds the noise level (n,) by sines and two linear layers, (n, width), as in diffusion models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rates: Tensor
        self.register_buffer("rates", torch.exp(torch.linspace(0, math.log(1000), width // 2)), persistent=False)
        self.body = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    @override
    def forward(self, level: Tensor) -> Tensor:
        angle = level[:, None] * self.rates
        embedded: Tensor = self.body(torch.cat([angle.sin(), angle.cos()], 1))
        return embedded


class NoisedClassifier(nn.Module):
    """Classifies noised images, conditioned on the embedded noise level (Dhariwal & Nichol 2021)."""

    def __init__(self, side: int, width: int = 400) -> None:
        super().__init__()
        self.level, self.scale = NoiseLevel(64), nn.Linear(64, width)
        self.first, self.second = nn.Linear(side * side, width), nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        embedded = self.level(level)
        hidden = torch.relu(self.first(x) + self.scale(embedded))
        logits: Tensor = self.head(torch.relu(self.second(hidden)))
        return logits


class Denoiser(nn.Module):
    """Predicts the noise in images, conditioned on the embedded noise level: a small U-Net (Ho et al. 2020)."""

    def __init__(self, side: int, width: int = 16) -> None:
        super().__init__()
        self.level, self.scale = NoiseLevel(64), nn.Linear(64, 2 * width)
        self.images = Images(side)
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), group_norm(width), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), group_norm(2 * width))
        self.middle = nn.Sequential(nn.SiLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.SiLU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1)
        )

    @override
    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        embedded = self.scale(self.level(level))
        fine = self.first(self.images(x))
        coarse = self.middle(self.down(fine) + embedded[:, :, None, None])
        noise: Tensor = self.last(torch.cat([fine, self.up(coarse)], 1))
        return noise.flatten(1)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "mlp": mlp,
    "mlp-eval": mlp,
    "convnet-batchnorm": partial(convnet, norm=nn.BatchNorm2d),
    "convnet-groupnorm": partial(convnet, norm=group_norm),
    "convnet-separable": separable,
    "resnet": resnet,
    "vit-patch2": partial(ViT, patch=2, pool=2),
    "vit-patch4": partial(ViT, patch=4),
    "gru": partial(Recurrent, kind=nn.GRU),
    "lstm": partial(Recurrent, kind=nn.LSTM),
    "position-first": PositionFirst,
    "noise-level-first": NoisedClassifier,
    "denoiser": Denoiser,
}
MOBILENET = "mobilenet-imagenet"
NAMES = (*NETWORKS, MOBILENET)
EVALUATING = ("mlp-eval",)  # trained in evaluation mode, like models from ``from_pretrained``
NOISED = ("noise-level-first", "denoiser")


def make(name: str, side: int, weights: Path | None = None) -> nn.Module:
    """The network of this name for images of ``side`` × ``side`` pixels, in the mode in which it is trained.

    Raises:
        ValueError: the name is unknown, or the folder ``weights`` lacks the network's initial weights.
    """
    if name not in NAMES:
        raise ValueError(f"Expected network to be one of {NAMES}, got {name!r}.")
    net = Pretrained(side, weights, CLASSES) if name == MOBILENET else NETWORKS[name](side)
    return net.train(name not in EVALUATING)


def classifier_layer(net: nn.Module) -> nn.Linear:
    """The last linear layer with one output per class.

    Raises:
        ValueError: the network has no such layer.
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES]
    if not layers:
        raise ValueError(f"Expected a network with a linear layer of {CLASSES} outputs, got {type(net).__name__}.")
    return layers[-1]
