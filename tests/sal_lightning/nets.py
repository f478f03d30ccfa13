"""The network of the callback tests: layers held by their directions, and a norm held weight by weight; its data."""

import torch
from torch import nn

from tests.everywhere import models


class Net(models.Net):
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        layers = nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        super().__init__(nn.Sequential(*layers))


def loader(length=60, change=40, first=0):
    """As few batches as show a change that is found: 20 of them are needed to know the usual novelty."""
    return models.loader(length, change, first)
