"""What is put beside SAL: a name, and the callback that has learned a first task once ``consolidate`` was called."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from lightning.pytorch import Callback

from benchmarks.penalties import EWC, SI, LwF, Method
from benchmarks.published import Published
from benchmarks.workloads import Workload
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


class Contender(NamedTuple):
    """A callback, how its first task ends, and the bytes it keeps from step to step."""

    callback: Callback | None = None
    consolidate: Callable[[], None] = lambda: None
    kept: Callable[[], float] = lambda: 0.0


def contender(method: str, model: Workload, history: int) -> Contender:
    """The method of this name for this model."""
    match method:
        case "plain" | "plain-again":
            return Contender()
        case "sal" | "sal-manual" | "sal-observing":
            return _sal(method)
        case "published":
            return _own(Published(model))
        case "published-history":
            return _own(Published(model, history))
        case "ewc":
            return _own(EWC(model))
        case "si":
            return _own(SI(model))
        case "lwf":
            return _own(LwF(model))
    raise ValueError(f"Expected method to be one of {METHODS}, got {method!r}.")


def _sal(method: str) -> Contender:
    callback = SALCallback(consolidate_on=None) if method == "sal-manual" else SALCallback()
    consolidate = (lambda: None) if method == "sal-observing" else callback.consolidate
    return Contender(callback, consolidate, lambda: callback.memory()["state"])


def _own(method: Method) -> Contender:
    return Contender(method, torch.no_grad()(method.consolidate), partial(_bytes, method))


def _bytes(method: Method) -> float:
    return float(sum(t.nbytes for t in method.tensors()))
