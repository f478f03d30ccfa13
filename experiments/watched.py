"""Runs that are watched: what SAL logs, drift of the first task, and a cascade of the trained network's states."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from typing_extensions import override

from experiments.continual.model import MLP
from experiments.continual.protocol import Result, run
from experiments.continual.streams import StreamName
from sal_lightning.drift_monitor import DriftMonitor
from sal_lightning.emergence.cascade import PulseCascade
from sal_lightning.report import flow
from sal_lightning.report.page import write
from sal_lightning.report.reading import CASCADE, read

WRITTEN = ("metrics.csv", "hparams.yaml", CASCADE)
FEATURES = 512  # test pictures of the first task whose features are followed
VIEWS, NOISE, STEPS = 24, 1.0, 8  # noisy views of one picture, the noise's deviation, generations
COHERENT = 0.2  # of a pulse that splits: about their centre, states are less alike than they were
PULL = 0.25  # how far a state goes towards what it reminds of, in each generation


class FirstTask(DriftMonitor):
    """Follows the features of the first task's test pictures from its end on."""

    def __init__(self) -> None:
        super().__init__(None)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        task = data.stream.tasks[0]
        self.inputs, self.since = task.see(task.test_x[:FEATURES]), data.steps
        super().on_train_start(trainer, pl_module)


class Cascade(Callback):
    """After the training: which of the classes do noisy views of one picture call up?"""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stream = trainer.datamodule.stream  # type: ignore[attr-defined]
        assert isinstance(pl_module, MLP)
        generator = torch.Generator().manual_seed(self.seed)
        pictures = torch.cat([task.see(task.train_x[:FEATURES]) for task in stream.tasks])
        labels = torch.cat([task.train_y[:FEATURES] for task in stream.tasks])
        picture = stream.tasks[-1].see(stream.tasks[-1].test_x[:1])
        noise = NOISE * torch.randn(VIEWS, *picture.shape[1:], generator=generator)
        with torch.no_grad():
            known, states = pl_module.features(pictures), pl_module.features(picture + noise)
        centre = known.mean(0)  # of features that are never negative, no two would look unlike
        flow.save(remind(states - centre, prototypes(known - centre, labels), self.seed), self.folder)


def prototypes(features: Tensor, labels: Tensor) -> Tensor:
    """The mean feature of each class: (classes, d)."""
    return torch.stack([features[labels == label].mean(0) for label in sorted(set(labels.tolist()))])


def remind(states: Tensor, known: Tensor, seed: int = 0) -> PulseCascade:
    """Let states evolve towards what they remind of: ``x ← x + ¼ (softmax(x̂ P̂ᵀ √d) P − x)``, a Hopfield network.

    Ramsauer et al. 2021, "Hopfield networks is all you need"; P are the known patterns, a hat marks length 1.
    """
    patterns = torch.nn.functional.normalize(known, dim=1)

    def evolve(x: Tensor) -> Tensor:
        likeness = torch.nn.functional.normalize(x, dim=1) @ patterns.mT
        return x + PULL * (torch.softmax(likeness * x.shape[1] ** 0.5, 1) @ known - x)

    cascade = PulseCascade(coherent=COHERENT, generator=torch.Generator().manual_seed(seed))
    cascade.initiate(states)
    while cascade.generation < STEPS and cascade.step(evolve):
        pass
    return cascade


def watch(stream: StreamName, method: str, out: Path, callbacks: Sequence[Callback] = (), **options: Any) -> Result:
    """Run once through the stream, with all that a page shows in the folder ``out``/``method``."""
    folder = out / method
    for name in WRITTEN:  # by an earlier run
        (folder / name).unlink(missing_ok=True)
    logger = CSVLogger(out, name="", version=method)
    return run(stream, method, callbacks=[FirstTask(), Cascade(folder), *callbacks], logger=logger, **options)


def page(runs: Path, file: Path) -> Path:
    """The page of the run with SAL in this folder, compared with the plain one."""
    return write(read([runs / "sal"]), file, read([runs / "plain"]))
