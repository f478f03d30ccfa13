"""A small network, regression tasks on different inputs, and the seeds' two lines."""

import torch
import torch.nn.functional as F
from torch import nn


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


def task(t, n=64, seed=0):
    """Regression on inputs in four of twelve directions, which differ between tasks."""
    generator = torch.Generator().manual_seed(1000 * t + seed)
    x = torch.zeros(n, 12)
    x[:, 4 * t : 4 * t + 4] = torch.randn(n, 4, generator=generator) + 1
    return x, x[:, 4 * t : 4 * t + 4].roll(t, 1)


def train(model, optimizer, t, steps, comm=None, start=0):
    """Trains by the seeds' two lines; returns the last loss."""
    for i in range(start, start + steps):
        x, y = task(t, seed=i)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        if comm is not None:
            comm.analyze()
            comm.protect()
        optimizer.step()
    return loss.item()


def loss(model, t):
    x, y = task(t, n=512, seed=999)
    with torch.no_grad():
        return F.mse_loss(model(x), y).item()
