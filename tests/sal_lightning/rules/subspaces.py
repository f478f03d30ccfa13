"""SubspaceRule rules of small layers, and what they are shown."""

import torch

from sal_lightning import layers
from sal_lightning.rules import firmness, subspace
from sal_lightning.rules.subspace import SubspaceRule
from sal_lightning.settings import Settings


def make(module, strength=4.0, recall=0.5, share=1.0):
    (layer,) = layers.find(module)
    names = {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
    return SubspaceRule(layer, names, Settings(strength=strength, recall=recall, share=share))


def show(rule, x, steps=20):
    for step in range(steps):
        rule.collect((x,), step)
        rule.update()


def inputs(d, n=64, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 0.8 ** torch.arange(d)


def restore(rule):
    """As the communication layer does it in one process."""
    rule.restore()
    if rule.moved is not None:
        rule.update_pace(rule.moved)


def narrow(monkeypatch, rank=6, mask=4):
    """Fewer directions than inputs, in layers small enough to compare."""
    monkeypatch.setattr(subspace, "MIN_RANK", rank)
    monkeypatch.setattr(subspace, "MAX_RANK", rank)
    monkeypatch.setattr(subspace, "MASK", mask)
    monkeypatch.setattr(firmness, "GAP", 1e-9)
