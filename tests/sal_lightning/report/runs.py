"""Short runs with a change of data in the middle, logged in every way."""

import warnings

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

LENGTH, CHANGE = 120, 60


class Batches(Dataset):
    """Regression on four of twelve inputs; from CHANGE on other four come into play."""

    def __len__(self):
        return LENGTH

    def __getitem__(self, i):
        t = int(i >= CHANGE)
        x = torch.zeros(32, 12)
        x[:, 4 * t : 4 * t + 4] = torch.randn(32, 4, generator=torch.Generator().manual_seed(1000 * t + i)) + 1
        return x, x[:, 4 * t : 4 * t + 4]


class Net(L.LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def fit(folder, callbacks, model=None, **options):
    """Train once through the batches."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 1, "logger": False, "log_every_n_steps": 10, **quiet, **options}
    trainer = L.Trainer(accelerator="cpu", default_root_dir=folder, callbacks=callbacks, **options)
    model = model or Net()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
        trainer.fit(model, DataLoader(Batches(), batch_size=None))
    return trainer, model
