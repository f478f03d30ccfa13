"""Runs for a report page: logged values of SAL, drift of the first task, and a cascade of the trained network."""

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
FEATURES = 512  # number of test images whose feature drift is measured
VIEWS, NOISE, STEPS = 24, 1.0, 8  # noisy views of one image, standard deviation of the noise, generations
COHERENT = 0.2  # threshold for splitting, lower than the default as centred states are less similar
PULL = 0.25  # step size of a state towards its retrieved pattern, per generation


class FirstTask(DriftMonitor):
    """Measures the drift of the features of the first task's test images from the end of this task."""

    def __init__(self) -> None:
        super().__init__(None)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        task = data.stream.tasks[0]
        self.inputs, self.since = task.see(task.test_x[:FEATURES]), data.steps
        super().on_train_start(trainer, pl_module)


class Cascade(Callback):
    """Runs a cascade on noisy views of one image after the training, with the classes as patterns."""

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
        centre = known.mean(0)  # without centring, non-negative features are all similar
        flow.save(remind(states - centre, prototypes(known - centre, labels), self.seed), self.folder)


def prototypes(features: Tensor, labels: Tensor) -> Tensor:
    """The mean feature of each class: (classes, d)."""
    return torch.stack([features[labels == label].mean(0) for label in sorted(set(labels.tolist()))])


def remind(states: Tensor, known: Tensor, seed: int = 0) -> PulseCascade:
    """Evolve states in a modern Hopfield network, ``x ← x + ¼ (softmax(x̂ P̂ᵀ √d) P − x)``.

    Ramsauer et al. 2021, "Hopfield networks is all you need"; P are the stored patterns, a hat marks unit vectors.
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
    """Train once on the stream, and write all data of a page to the folder ``out``/``method``."""
    folder = out / method
    for name in WRITTEN:  # written by an earlier run
        (folder / name).unlink(missing_ok=True)
    logger = CSVLogger(out, name="", version=method)
    return run(stream, method, callbacks=[FirstTask(), Cascade(folder), *callbacks], logger=logger, **options)


def page(runs: Path, file: Path) -> Path:
    """Write the page of the run with SAL in a folder, compared with the plain one."""
    return write(read([runs / "sal"]), file, read([runs / "plain"]))
