"""The streams: an image data set divided into consecutive tasks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.continual.data import Arrays

StreamName = Literal[
    "split-task",
    "split-domain",
    "split-class",
    "split-task-ordered",
    "split-domain-ordered",
    "split-class-ordered",
    "split-domain-fuzzy",
    "split-class-fuzzy",
    "permuted",
    "rotated",
    "owm-class",
    "owm-permuted",
    "gpm-permuted",
    "stationary",
]
STREAMS: tuple[StreamName, ...] = get_args(StreamName)
CLASSES = 10
SPLIT_TASKS = 5
PERMUTED_TASKS = 10
ROTATED_TASKS = 20
MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081
FUZZY = 0.25  # share of a task's steps before its end in which the next one is mixed in


def as_they_are(x: Tensor) -> Tensor:
    """Unchanged images."""
    return x


@dataclass(frozen=True)
class Task:
    """One task; ``classes`` are its active outputs, in training and testing."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: slice
    # Applied on access, so that permuted and rotated tasks share one copy of the images.
    see: Callable[[Tensor], Tensor] = as_they_are


@dataclass(frozen=True)
class Stream:
    """Tasks in order, with the network's numbers of inputs and outputs; ``fuzzy`` tasks change gradually."""

    name: StreamName
    tasks: tuple[Task, ...]
    inputs: int
    outputs: int
    fuzzy: float = 0.0

    @property
    def one_a_batch(self) -> bool:
        """Whether each batch has a single task, since tasks use different outputs."""
        return any(task.classes != self.tasks[0].classes for task in self.tasks)

    def shares(self, step: int, steps: int) -> Tensor:
        """The tasks' shares in the batch of a step, (tasks,), with a linear ramp around each boundary.

        A sharp boundary is a ramp of length 0. Ramps as in van de Ven et al. 2022, whose streams are cyclic; these end
        with the last task.
        """
        ends = torch.arange(1, len(self.tasks)) * steps
        # Total share of the tasks after each boundary.
        later = ((step + 0.5 - ends) / max(2 * self.fuzzy * steps, 1e-9) + 0.5).clamp(0, 1)
        return torch.cat([torch.ones(1), later]) - torch.cat([later, torch.zeros(1)])


def make(name: StreamName, arrays: Arrays, seed: int) -> Stream:
    """The stream of this name; the seed determines the order of classes or pixels."""
    if name not in STREAMS:
        raise ValueError(f"Expected stream to be one of {STREAMS}, got {name!r}.")
    generator = torch.Generator().manual_seed(seed)
    if name == "stationary":
        tasks = iter([Task(*arrays, slice(0, CLASSES))])
    elif name.endswith("permuted"):
        tasks = permuted(name, arrays, generator)
    elif name == "rotated":
        tasks = rotated(arrays, generator)
    else:
        tasks = split(name, arrays, generator)
    made = tuple(tasks)
    outputs = 2 if name.startswith("split-domain") else CLASSES
    return Stream(name, made, made[0].train_x.shape[1], outputs, FUZZY if name.endswith("-fuzzy") else 0.0)


def count(name: StreamName) -> int:
    """Number of tasks of a stream.

    >>> count("split-task"), count("owm-class"), count("permuted"), count("stationary")
    (5, 10, 10, 1)
    """
    if name.endswith("permuted"):
        return PERMUTED_TASKS
    return {"rotated": ROTATED_TASKS, "owm-class": CLASSES, "stationary": 1}.get(name, SPLIT_TASKS)


def split(name: StreamName, arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """Five tasks of two classes each, in random order (van de Ven et al. 2022) or in order (``ordered``).

    ``owm-class``: ten tasks of one class each, in order (Zeng et al. 2019).
    """
    in_order = name.endswith("-ordered") or name == "owm-class"
    rank = torch.arange(CLASSES) if in_order else torch.randperm(CLASSES, generator=generator)
    train_rank, test_rank = rank[arrays.train_y], rank[arrays.test_y]
    size = CLASSES // count(name)
    for t in range(count(name)):
        train, test = train_rank // size == t, test_rank // size == t
        labels = (train_rank[train], test_rank[test])
        train_y, test_y = (y % 2 for y in labels) if name.startswith("split-domain") else labels
        yield Task(arrays.train_x[train], train_y, arrays.test_x[test], test_y, active(name, t))


def active(name: StreamName, t: int) -> slice:
    """The active outputs of split task ``t``.

    >>> active("split-task", 3), active("split-domain", 3), active("split-class", 3)
    (slice(6, 8, None), slice(0, 2, None), slice(0, 10, None))
    """
    if name.startswith("split-task"):
        return slice(2 * t, 2 * t + 2)
    return slice(0, 2) if name.startswith("split-domain") else slice(0, CLASSES)


def permuted(name: StreamName, arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """Ten tasks of all classes, each with its own permutation of the pixels, including the first.

    ``permuted`` pads the images (van de Ven et al. 2022). ``owm-permuted`` does not, and leaves the first task's pixels
    in order (Zeng et al. 2019); ``gpm-permuted`` does not either, and standardises the pixels (Saha et al. 2021).
    """
    see = {"permuted": pad, "gpm-permuted": standardise}.get(name, as_they_are)
    train_x, test_x = see(arrays.train_x), see(arrays.test_x)
    pixels = train_x.shape[1]
    for t in range(count(name)):
        unchanged = name == "owm-permuted" and t == 0
        order = torch.arange(pixels) if unchanged else torch.randperm(pixels, generator=generator)
        yield Task(train_x, arrays.train_y, test_x, arrays.test_y, slice(0, CLASSES), partial(reorder, order))


def rotated(arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """Twenty tasks of all classes, each rotated by a random angle in [0, 180) degrees (Buzzega et al. 2020)."""
    for degrees in (180 * torch.rand(ROTATED_TASKS, generator=generator)).tolist():
        yield Task(*arrays, slice(0, CLASSES), partial(rotate, math.radians(degrees)))


def reorder(pixels: Tensor, x: Tensor) -> Tensor:
    """Permute the pixels."""
    return x[:, pixels]


def rotate(angle: float, x: Tensor) -> Tensor:
    """Rotate square images by an angle in radians about their centre, bilinear, with zeros outside.

    >>> rotate(math.pi / 2, torch.tensor([[1.0, 0.0, 0.0, 0.0]])).round(decimals=3) + 0
    tensor([[0., 1., 0., 0.]])
    """
    side = math.isqrt(x.shape[1])
    turn = torch.tensor([[math.cos(angle), math.sin(angle), 0.0], [-math.sin(angle), math.cos(angle), 0.0]])
    grid = F.affine_grid(turn.to(x).expand(len(x), 2, 3), [len(x), 1, side, side], align_corners=False)
    return F.grid_sample(x.view(-1, 1, side, side), grid, align_corners=False).flatten(1)


def pad(x: Tensor) -> Tensor:
    """Pad MNIST with zeros from 28x28 to 32x32, as published; other sizes are unchanged.

    >>> pad(torch.ones(3, 784)).shape, pad(torch.ones(3, 64)).shape
    (torch.Size([3, 1024]), torch.Size([3, 64]))
    """
    if x.shape[1] != 28 * 28:
        return x
    return F.pad(x.view(-1, 28, 28), (2, 2, 2, 2)).flatten(1)


def standardise(x: Tensor) -> Tensor:
    """Subtract the mean of MNIST's training pixels and divide by their standard deviation, as published for GPM."""
    return (x - MNIST_MEAN) / MNIST_DEVIATION
