"""The streams: the same pictures, cut into tasks that follow one another."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from experiments.continual.data import Arrays

StreamName = Literal[
    "split-task",
    "split-domain",
    "split-class",
    "split-task-ordered",
    "split-domain-ordered",
    "split-class-ordered",
    "permuted",
    "stationary",
]
STREAMS: tuple[StreamName, ...] = get_args(StreamName)
CLASSES = 10
SPLIT_TASKS = 5
PERMUTED_TASKS = 10


@dataclass(frozen=True)
class Task:
    """One task; ``classes`` are the outputs that take part in it, for training and testing alike."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: slice
    # Kept apart from the images, so that all permuted tasks share one copy of them.
    pixels: Tensor | None = None

    def see(self, x: Tensor) -> Tensor:
        """The images as this task shows them."""
        return x if self.pixels is None else x[:, self.pixels]


@dataclass(frozen=True)
class Stream:
    """Tasks in order, for a network with this many inputs and outputs."""

    name: StreamName
    tasks: tuple[Task, ...]
    inputs: int
    outputs: int


def make(name: StreamName, arrays: Arrays, seed: int) -> Stream:
    """The stream of this name; the seed deals out classes or pixels."""
    if name not in STREAMS:
        raise ValueError(f"Expected stream to be one of {STREAMS}, got {name!r}.")
    generator = torch.Generator().manual_seed(seed)
    if name == "stationary":
        tasks = iter([Task(*arrays, slice(0, CLASSES))])
    elif name == "permuted":
        tasks = permuted(arrays, generator)
    else:
        tasks = split(name, arrays, generator)
    made = tuple(tasks)
    return Stream(name, made, made[0].train_x.shape[1], 2 if name.startswith("split-domain") else CLASSES)


def count(name: StreamName) -> int:
    """How many tasks the stream has.

    >>> count("split-task"), count("permuted"), count("stationary")
    (5, 10, 1)
    """
    return {"permuted": PERMUTED_TASKS, "stationary": 1}.get(name, SPLIT_TASKS)


def split(name: StreamName, arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """Five tasks of two classes each: dealt by the generator (van de Ven et al. 2022) or in order (``ordered``)."""
    rank = torch.arange(CLASSES) if name.endswith("-ordered") else torch.randperm(CLASSES, generator=generator)
    train_rank, test_rank = rank[arrays.train_y], rank[arrays.test_y]
    for t in range(count(name)):
        train, test = train_rank // 2 == t, test_rank // 2 == t
        labels = (train_rank[train], test_rank[test])
        train_y, test_y = (y % 2 for y in labels) if name.startswith("split-domain") else labels
        yield Task(arrays.train_x[train], train_y, arrays.test_x[test], test_y, active(name, t))


def active(name: StreamName, t: int) -> slice:
    """The outputs that take part in split task ``t``.

    >>> active("split-task", 3), active("split-domain", 3), active("split-class", 3)
    (slice(6, 8, None), slice(0, 2, None), slice(0, 10, None))
    """
    if name.startswith("split-task"):
        return slice(2 * t, 2 * t + 2)
    return slice(0, 2) if name.startswith("split-domain") else slice(0, CLASSES)


def permuted(arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """Ten tasks of all classes, each with its own order of the pixels, the first one too."""
    train_x, test_x = pad(arrays.train_x), pad(arrays.test_x)
    for _ in range(PERMUTED_TASKS):
        pixels = torch.randperm(train_x.shape[1], generator=generator)
        yield Task(train_x, arrays.train_y, test_x, arrays.test_y, slice(0, CLASSES), pixels)


def pad(x: Tensor) -> Tensor:
    """MNIST grows a border of zeros, 28x28 to 32x32, as published; other sizes stay.

    >>> pad(torch.ones(3, 784)).shape, pad(torch.ones(3, 64)).shape
    (torch.Size([3, 1024]), torch.Size([3, 64]))
    """
    if x.shape[1] != 28 * 28:
        return x
    return torch.nn.functional.pad(x.view(-1, 28, 28), (2, 2, 2, 2)).flatten(1)
