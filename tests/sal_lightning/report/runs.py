"""Short runs with a change of data in the middle, logged in every way."""

import warnings

import torch
from torch import nn

from tests.everywhere import models


class Net(models.Net):
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__(nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4)))


def fit(folder, callbacks, model=None, **options):
    """Train once through 60 batches, the data of which change at 40."""
    trainer, model = models.trainer(folder, callbacks, **{"log_every_n_steps": 10, **options}), model or Net()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
        trainer.fit(model, models.loader(length=60, change=40))
    return trainer, model
