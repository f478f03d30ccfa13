"""The time of a step inside ``Trainer.fit``: one lap of each method after the other, round after round."""

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from benchmarks.methods import Contender, contender
from benchmarks.settings import Setting
from benchmarks.workloads import WORKLOADS, Workload
from experiments.continual.protocol import quiet

PRECISION: dict[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}


class Entry(NamedTuple):
    """A model in training, the method beside it, and what its Trainer is given besides."""

    model: Workload
    contender: Contender
    options: dict[str, Any]


class Lap(NamedTuple):
    """Seconds of each step: by the clock, and of this process on all processors."""

    wall: list[float]
    cpu: list[float]


class Stopwatch(Callback):
    """Marks the start of every step; between two marks lies one whole step, with all callbacks."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def lap(self) -> Lap:
        """All steps but the first, that warms up, and the last, that ends the epoch."""
        wall, cpu = zip(*self.marks[1:], strict=True)
        return Lap(_differences(wall), _differences(cpu))


def _differences(marks: tuple[float, ...]) -> list[float]:
    return [b - a for a, b in pairwise(marks)]


class Once(Callback):
    """Does something before one step."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            self.act()


def enter(setting: Setting, method: str, **options: Any) -> Entry:
    """A new model with the method's first task behind it."""
    L.seed_everything(setting.seed, verbose=False)
    model = WORKLOADS[setting.workload](setting)
    entry = Entry(model, contender(method, setting.history), options)
    fit(entry, setting.warmup + setting.settle, setting, Once(setting.warmup, entry.contender.consolidate))
    return entry


def fit(entry: Entry, steps: int, setting: Setting, *callbacks: Callback) -> Lap:
    """Train on, and time so many steps."""
    watch, own = Stopwatch(), entry.contender.callback
    options = {"logger": False, **entry.options}
    gc.collect()  # what the last lap left is not this one's cost
    with quiet():
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
        trainer = L.Trainer(
            max_epochs=1,
            accelerator=setting.device,
            devices=1,
            precision=PRECISION[setting.dtype],
            callbacks=[watch, *callbacks, *([own] if own else [])],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(entry.model, entry.model.loader(steps + 2))
    entry.model.adam.zero_grad()  # room for the others
    return watch.lap()


def interleave(entries: Mapping[str, Entry], setting: Setting) -> Iterator[tuple[str, Lap]]:
    """One lap of each in turn, every round beginning with another."""
    names = list(entries)
    for r in range(setting.rounds):
        first = r % len(names)
        for name in names[first:] + names[:first]:
            yield name, fit(entries[name], setting.steps, setting)
