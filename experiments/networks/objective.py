"""Inputs, targets, loss and score of a network: for classification, or for predicting noise."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.networks.networks import NOISED
from experiments.networks.streams import Batch

DENOISER = "denoiser"


class Example(NamedTuple):
    """The network's arguments, and the targets."""

    given: tuple[Tensor, ...]
    target: Tensor


def example(network: str, batch: Batch, generator: torch.Generator) -> Example:
    """Convert a batch to an example for this network; noise, if needed, is drawn from the generator.

    The level of noise ``t`` is uniform in [0, 1]; the image becomes ``√(1 − t²) x + t ε``.
    """
    x, y = batch
    if network not in NOISED:
        return Example((x,), y)
    t, noise = torch.rand(len(x), generator=generator), torch.randn(x.shape, generator=generator)
    noised = (1 - t[:, None] ** 2).sqrt() * x + t[:, None] * noise
    return Example((noised, t), noise if network == DENOISER else y)


def loss(network: str, out: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, or the mean squared error of the noise."""
    return F.mse_loss(out, target) if network == DENOISER else F.cross_entropy(out, target)


def score(network: str, out: Tensor, target: Tensor) -> float:
    """Accuracy in [0, 1], or the share of the noise's variance that is explained, at most 1."""
    if network == DENOISER:
        return 1 - float((out - target).square().sum() / target.square().sum())
    return float((out.argmax(1) == target).double().mean())
