"""The methods compared with SAL: a name, and a callback that has learned a first task after ``consolidate``."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from lightning.pytorch import Callback

from benchmarks.published import Published
from experiments.continual.baselines.base import Baseline
from experiments.continual.baselines.ewc import BatchGradientEWC
from experiments.continual.baselines.lwf import LwF
from experiments.continual.baselines.si import SI
from sal_lightning import SALCallback

METHODS = (
    "plain",
    "plain-again",
    "sal",
    "sal-manual",
    "sal-observing",
    "published",
    "published-history",
    "ewc",
    "si",
    "lwf",
)
USUAL = ("plain", "plain-again", "sal", "sal-observing", "published", "ewc", "si", "lwf")

STRENGTH = {"ewc": 1.0, "si": 0.2}


class Contender(NamedTuple):
    """A callback, a function that ends its first task, and the bytes it keeps between steps."""

    callback: Callback | None = None
    consolidate: Callable[[], None] = lambda: None
    kept: Callable[[], float] = lambda: 0.0


def contender(method: str, history: int) -> Contender:
    """The method of this name."""
    match method:
        case "plain" | "plain-again":
            return Contender()
        case "sal" | "sal-manual" | "sal-observing":
            return _sal(method)
        case "published":
            return _own(Published())
        case "published-history":
            return _own(Published(history))
        case "ewc":
            return _own(BatchGradientEWC(STRENGTH["ewc"]))
        case "si":
            return _own(SI(STRENGTH["si"]))
        case "lwf":
            return _own(LwF())
    raise ValueError(f"Expected method to be one of {METHODS}, got {method!r}.")


def _sal(method: str) -> Contender:
    callback = SALCallback(consolidate_on=None) if method == "sal-manual" else SALCallback()
    consolidate = (lambda: None) if method == "sal-observing" else callback.consolidate
    return Contender(callback, consolidate, lambda: callback.memory()["state"])


def _own(method: Baseline) -> Contender:
    return Contender(method, method.end_task, partial(_bytes, method))


def _bytes(method: Baseline) -> float:
    return float(sum(t.nbytes for t in method.tensors()))
