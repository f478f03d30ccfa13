"""Stages: training on one domain with a new AdamW, and the losses measured between stages."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from experiments.continual.evaluation import evaluating
from experiments.continual.protocol import quiet, trainer
from experiments.language.model import LanguageModel, next_byte
from experiments.language.settings import Scale
from experiments.language.text import Batches, Domain, windows

Losses = dict[str, dict[str, float]]  # by domain, then by part


class Domains(NamedTuple):
    """The domain of the first and the last stage, and that of the second."""

    first: Domain
    second: Domain


def batches(domain: Domain, scale: Scale, seed: int, stage: int) -> DataLoader[Tensor]:
    """The batches of a stage, counted from 0."""
    rows = Batches(domain.train, scale.context, scale.batch, scale.steps[stage], 1000 * seed + stage)
    return DataLoader(rows, batch_size=None)


def train(
    model: LanguageModel, stage: DataLoader[Tensor], callbacks: Sequence[Callback], accelerator: str = "cpu"
) -> float:
    """Train one stage; returns its duration in seconds."""
    with quiet():
        fit = trainer(callbacks, accelerator)
        started = time.perf_counter()
        fit.fit(model, stage)
        seconds = time.perf_counter() - started
    model.to(fit.strategy.root_device)  # Lightning moves it to the CPU at the end
    return seconds


def loss(model: LanguageModel, text: Tensor, scale: Scale) -> float:
    """Loss in nats per byte over a whole text."""
    rows = windows(text, scale.context)
    with evaluating(model):
        parts = [next_byte(model, part.to(model.device)) * len(part) for part in torch.split(rows, scale.batch)]
    return float(torch.stack(parts).sum()) / len(rows)


def losses(model: LanguageModel, domains: Domains, scale: Scale) -> Losses:
    """Losses on the validation and test parts of both domains."""
    return {
        d.name: {"validation": loss(model, d.validation, scale), "test": loss(model, d.test, scale)} for d in domains
    }
