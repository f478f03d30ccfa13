"""Sources of batches with known changes: the image streams, and two alternating texts."""

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
TURNS = 6  # number of alternating parts of the two texts
WIDTH = 8


class Source(NamedTuple):
    """Batches in order, the number of batches before each change, and a network for them.

    Only the first layer of the network matters: novelty is measured on its inputs, which do not depend on training.
    """

    name: str
    changes: tuple[int, ...]
    lasting: int  # duration of a change in batches
    length: int
    batches: Callable[[], Iterator[Tensor]]
    net: nn.Module


def pictures(stream: StreamName, data: str, steps: int, seed: int) -> Source:
    """``steps`` batches per task; a gradual change begins with the first mixed batch."""
    torch.manual_seed(seed)  # for the network's weights
    made = make(stream, load(data), seed)
    rows = StreamBatches(made, steps, BATCH, seed)
    mixed = int(made.fuzzy * steps)  # on each side of a boundary
    changes = tuple(range(steps - mixed, len(rows) - mixed, steps))
    net = nn.Linear(made.inputs, WIDTH)
    return Source(stream, changes, 2 * mixed, len(rows), lambda: (rows[i].x for i in range(len(rows))), net)


def texts(steps: int, seed: int, turns: int = TURNS) -> Source:
    """Shakespeare and Python, alternating every ``steps`` batches; a single part is stationary."""
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
    """The source of this name: an image stream such as ``split-domain``, ``text`` or ``text-stationary``."""
    if name.startswith("text"):
        return texts(steps, seed, 1 if name.endswith("stationary") else TURNS)
    return pictures(cast(StreamName, name), data, steps, seed)
