"""The network of the callback tests: layers held by their directions, and a norm held weight by weight."""

import torch
from torch import nn

from tests.everywhere import models


class Net(models.Net):
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        layers = nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        super().__init__(nn.Sequential(*layers))
