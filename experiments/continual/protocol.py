"""One run of a method on a stream with a seed, and its record."""

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from experiments import provenance
from experiments.continual import methods
from experiments.continual.batches import StreamData
from experiments.continual.data import NAMED
from experiments.continual.evaluation import Point, TaskAccuracy
from experiments.continual.streams import STREAMS, StreamName

LOG_STEPS = 5  # steps between logged rows


class Settings(NamedTuple):
    """The published network of a stream, its learning rate under Adam, the batch size, and measurements per task."""

    width: int
    lr: float
    layers: int = 2
    bias: bool = True
    batch: int = 128
    looks: int = 100

    def network(self) -> dict[str, Any]:
        """Arguments of the network, without the learning rate."""
        return {"width": self.width, "layers": self.layers, "bias": self.bias}


SPLIT = Settings(width=400, lr=1e-3)
PUBLISHED: dict[StreamName, Settings] = {name: SPLIT for name in STREAMS} | {
    "permuted": Settings(width=1000, lr=1e-4),
    # Published for 20 epochs a class, 30 epochs a task, and 5 epochs of 54,000 images: 3000, 18000 and 27000 steps.
    "owm-class": Settings(width=800, lr=1e-3, layers=1, batch=40, looks=10),
    "owm-permuted": Settings(width=800, lr=1e-4, batch=100, looks=10),
    "gpm-permuted": Settings(width=100, lr=1e-3, bias=False, batch=10, looks=10),
}


@dataclass(frozen=True)
class Result:
    """All data to interpret and reproduce a result, as JSON values."""

    command: str
    scenario: StreamName
    method: str
    seed: int
    steps: int
    lr: float
    batch: int
    data: str
    commit: str
    hardware: dict[str, str | int]
    versions: dict[str, str]
    R: list[list[float]]
    measures: dict[str, float | None]
    drift: float | None
    seconds: float
    memory: dict[str, Any]
    events: list[int]
    curve: list[Point]

    def record(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def data_name(data: str) -> str:
    """Name of a data set; a folder contains MNIST, as verified by checksums.

    >>> data_name("digits"), data_name("some/folder")
    ('digits', 'mnist')
    """
    return data if data in NAMED else "mnist"


def command(stream: str, method: str, seed: int, steps: int, data: str, lr: float | None) -> str:
    """The command line that repeats this run."""
    rate = "" if lr is None else f" --lr {lr:g}"
    run = f"--stream {stream} --methods {method} --seeds {seed} --steps {steps} --data {data_name(data)}"
    return f"python -m experiments.continual {run}{rate}"


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's hints on workers, devices and loggers."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            warnings.filterwarnings("ignore", message="GPU available but not used")
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
            yield
    finally:
        logger.setLevel(level)


def trainer(
    callbacks: Sequence[Callback], accelerator: str, logger: Logger | None = None, every: int = LOG_STEPS
) -> L.Trainer:
    """A trainer of one epoch, the whole stream; only a logger writes files."""
    return L.Trainer(
        max_epochs=1,
        accelerator=accelerator,
        devices=1,
        callbacks=list(callbacks),
        logger=logger or False,
        log_every_n_steps=every,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def run(
    stream: StreamName,
    method: str,
    seed: int,
    steps: int,
    *,
    data: str = "mnist",
    lr: float | None = None,
    batch: int | None = None,
    every: int | None = None,
    accelerator: str = "cpu",
    callbacks: Sequence[Callback] = (),
    logger: Logger | None = None,
) -> Result:
    """Train once on the stream with one optimizer; returns the result.

    ``lr=None`` and ``batch=None`` use the published learning rate and batch size of the stream; ``every=None`` measures
    as often per task as these settings say. Methods that train with SGD have their own learning rate.
    """
    settings = PUBLISHED[stream]
    rate = settings.lr if lr is None else lr
    L.seed_everything(seed, verbose=False)
    asked = methods.METHODS[methods.parse(methods.known(method))[0]]
    size = settings.batch if batch is None else batch
    source = StreamData(stream, data, steps, size, seed, asked.joint)
    model = methods.network(method, stream, source.inputs, source.outputs, **settings.network(), lr=rate)
    watch = TaskAccuracy(every or max(1, steps // settings.looks))
    with quiet(), methods.varied(method, stream) as guard:
        fit = trainer([*([guard] if guard else []), watch, *callbacks], accelerator, logger)
        started = time.perf_counter()
        fit.fit(model, datamodule=source)
        seconds = time.perf_counter() - started - watch.seconds
    return Result(
        command=command(stream, method, seed, steps, data, lr),
        scenario=stream,
        method=method,
        seed=seed,
        steps=steps,
        lr=rate,
        batch=size,
        data=data_name(data),
        commit=provenance.commit(),
        hardware=provenance.hardware(accelerator),
        versions=provenance.versions(),
        R=watch.R,
        measures=watch.summary(),
        drift=watch.drift,
        seconds=round(seconds, 3),
        memory=getattr(guard, "memory", dict)(),
        events=list(getattr(guard, "events", [])),
        curve=watch.curve,
    )
