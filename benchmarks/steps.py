"""The time of a step inside ``Trainer.fit``: in each round, one lap per method."""

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
    """A model in training, its method, and further arguments of its Trainer."""

    model: Workload
    contender: Contender
    options: dict[str, Any]


class Lap(NamedTuple):
    """Seconds of each step: wall-clock time, and CPU time of this process."""

    wall: list[float]
    cpu: list[float]


class Stopwatch(Callback):
    """Records the start of every step; a step is measured from start to start, with all callbacks.

    Args:
        lead: number of steps that do not count.
    """

    def __init__(self, lead: int) -> None:
        self.lead = lead
        self.marks: list[tuple[float, float]] = []

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def lap(self) -> Lap:
        """All steps except the first ``lead``, and the last, which ends the epoch."""
        wall, cpu = zip(*self.marks[self.lead :], strict=True)
        return Lap(_differences(wall), _differences(cpu))


def _differences(marks: tuple[float, ...]) -> list[float]:
    return [b - a for a, b in pairwise(marks)]


class Once(Callback):
    """Calls a function before one step."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            self.act()


def enter(setting: Setting, method: str, **options: Any) -> Entry:
    """Create a model and train it on the method's first task."""
    L.seed_everything(setting.seed, verbose=False)
    model = WORKLOADS[setting.workload](setting)
    entry = Entry(model, contender(method, setting.history), options)
    fit(entry, setting.warmup + setting.settle, setting, Once(setting.warmup, entry.contender.consolidate))
    return entry


def fit(entry: Entry, steps: int, setting: Setting, *callbacks: Callback) -> Lap:
    """Continue the training, and time this number of steps after the first ``setting.lead``."""
    watch, own = Stopwatch(setting.lead), entry.contender.callback
    options = {"logger": False, **entry.options}
    gc.collect()  # garbage of the last lap must not count in this one
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
        trainer.fit(entry.model, entry.model.loader(setting.lead + steps + 1))
    entry.model.adam.zero_grad()  # frees memory for the other models
    return watch.lap()


def interleave(entries: Mapping[str, Entry], setting: Setting) -> Iterator[tuple[str, Lap]]:
    """One lap of each per round; the order is rotated between rounds."""
    names = list(entries)
    for r in range(setting.rounds):
        first = r % len(names)
        for name in names[first:] + names[:first]:
            yield name, fit(entries[name], setting.steps, setting)
