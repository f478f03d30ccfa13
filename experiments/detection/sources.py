"""Batches whose changes are known: the streams of pictures, and two texts that take turns."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from experiments.continual.batches import StreamBatches
from experiments.continual.data import load
from experiments.continual.streams import StreamName, make
from experiments.language.settings import FULL
from experiments.language.text import Batches, library, shakespeare

BATCH = 128
TURNS = 6  # of the two texts
WIDTH = 8


class Source(NamedTuple):
    """Inputs in order, after how many of them others come, and a network that they fit.

    Only its first layer matters: novelty is asked there, of what comes from outside, and no training changes that.
    """

    name: str
    changes: tuple[int, ...]
    lasting: int  # batches that a change takes, until all are of the new kind
    length: int
    batches: Callable[[], Iterator[Tensor]]
    net: nn.Module


def pictures(stream: StreamName, data: str, steps: int, seed: int) -> Source:
    """``steps`` batches a task; where tasks shade into each other a change begins with the first mixed batch."""
    torch.manual_seed(seed)  # of the network
    made = make(stream, load(data), seed)
    rows = StreamBatches(made, steps, BATCH, seed)
    mixed = int(made.fuzzy * steps)  # before a boundary, and again after it
    changes = tuple(range(steps - mixed, len(rows) - mixed, steps))
    net = nn.Linear(made.inputs, WIDTH)
    return Source(stream, changes, 2 * mixed, len(rows), lambda: (rows[i].x for i in range(len(rows))), net)


def texts(steps: int, seed: int, turns: int = TURNS) -> Source:
    """Shakespeare and Python in turns of ``steps`` batches; one turn is stationary."""
    torch.manual_seed(seed)
    domains = (shakespeare(), library())
    parts = [
        Batches(domains[turn % 2].train, FULL.context, FULL.batch, steps, 1000 * seed + turn) for turn in range(turns)
    ]
    name = "text" if turns > 1 else "text-stationary"
    changes = tuple(steps * turn for turn in range(1, turns))
    net = nn.Sequential(nn.Embedding(256, WIDTH), nn.Linear(WIDTH, 1))
    return Source(
        name, changes, 0, turns * steps, lambda: (part[i][:, :-1] for part in parts for i in range(steps)), net
    )


def named(name: str, data: str, steps: int, seed: int) -> Source:
    """One of ``split-domain``, ``permuted`` and the other streams, ``text``, ``text-stationary``."""
    if name.startswith("text"):
        return texts(steps, seed, 1 if name.endswith("stationary") else TURNS)
    return pictures(cast(StreamName, name), data, steps, seed)
