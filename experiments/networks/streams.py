"""Streams whose data change once or several times: tasks in order, in one or several fits, as seeded batches.

A stream contains its change points; training receives the batches only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.continual.data import Arrays
from experiments.continual.streams import CLASSES, Task, as_they_are, reorder

ALL = slice(0, CLASSES)  # one head for all classes
STATIONARY = 20  # factor of the number of steps of the stationary stream


class Batch(NamedTuple):
    """Images as rows of pixels (n, side²), and labels (n,)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Stream:
    """Tasks in order, each for ``steps`` batches of ``batch`` images, drawn with replacement.

    ``fits`` is the number of tasks in each fit. Step ``i``, counted over the whole stream, has the same batch in every
    call, for every method and network.
    """

    name: str
    tasks: tuple[Task, ...]
    fits: tuple[int, ...]
    steps: int
    batch: int
    seed: int

    @property
    def length(self) -> int:
        """Total number of batches."""
        return len(self.tasks) * self.steps

    @property
    def changes(self) -> tuple[int, ...]:
        """Number of batches before each change."""
        return tuple(self.steps * task for task in range(1, len(self.tasks)))

    def spans(self) -> list[range]:
        """The steps of each fit."""
        ends = [self.steps * tasks for tasks in accumulate(self.fits)]
        return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def generator(self, step: int) -> torch.Generator:
        """The random generator of a step, seeded by the step."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + step)

    def at(self, step: int, joint: bool = False) -> Batch:
        """The batch of a step; ``joint`` draws each image from any of the tasks.

        Raises:
            IndexError: the stream has no such step.
        """
        if not 0 <= step < self.length:
            raise IndexError(f"Expected a step from 0 to {self.length - 1}, got {step}.")
        generator = self.generator(step)
        if not joint:
            return self._draw(self.tasks[step // self.steps], self.batch, generator)
        chosen = torch.randint(len(self.tasks), (self.batch,), generator=generator)
        counts = torch.bincount(chosen, minlength=len(self.tasks)).tolist()
        parts = [self._draw(task, n, generator) for task, n in zip(self.tasks, counts, strict=True) if n]
        return Batch(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def batches(self, span: range | None = None, joint: bool = False) -> Iterator[Batch]:
        """The batches of the given steps; default: all."""
        return (self.at(step, joint) for step in span or range(self.length))

    def old(self, samples: int | None = None) -> list[Batch]:
        """Test sets of all tasks but the last, or of a single one; the first ``samples`` of each."""
        return [_tests(task, samples) for task in self.tasks[:-1] or self.tasks]

    def new(self, samples: int | None = None) -> Batch:
        """The test set of the last task."""
        return _tests(self.tasks[-1], samples)

    @staticmethod
    def _draw(task: Task, n: int, generator: torch.Generator) -> Batch:
        rows = torch.randint(len(task.train_x), (n,), generator=generator)
        return Batch(task.see(task.train_x[rows]), task.train_y[rows])


def _tests(task: Task, samples: int | None) -> Batch:
    return Batch(task.see(task.test_x[:samples]), task.test_y[:samples])


# --- the tasks of each stream, from all images and a seeded generator ---

Tasks = Callable[[Arrays, torch.Generator], Iterator[Task]]


def split(arrays: Arrays, generator: torch.Generator, classes: int) -> Iterator[Task]:
    """Tasks of ``classes`` classes each, in order."""
    for first in range(0, CLASSES, classes):
        train, test = ((y >= first) & (y < first + classes) for y in (arrays.train_y, arrays.test_y))
        yield Task(arrays.train_x[train], arrays.train_y[train], arrays.test_x[test], arrays.test_y[test], ALL)


def permuted(arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """The original images, then the images with permuted pixels."""
    pixels = torch.randperm(arrays.train_x.shape[1], generator=generator)
    yield Task(*arrays, ALL)
    yield Task(*arrays, ALL, partial(reorder, pixels))


def brighten(x: Tensor) -> Tensor:
    """Twice the contrast, and brighter.

    >>> brighten(torch.tensor([0.0, 1.0]))
    tensor([1.5000, 3.5000])
    """
    return x * 2 + 1.5


def brighter(arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """The original images, then brighter ones."""
    for see in (as_they_are, brighten):
        yield Task(*arrays, ALL, see)


def labels(arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """The original images, then the same images with each label increased by one, cyclically."""
    yield Task(*arrays, ALL)
    train_y, test_y = ((y + 1) % CLASSES for y in (arrays.train_y, arrays.test_y))
    yield Task(arrays.train_x, train_y, arrays.test_x, test_y, ALL)


def stationary(arrays: Arrays, generator: torch.Generator) -> Iterator[Task]:
    """A single task with all images."""
    yield Task(*arrays, ALL)


STREAMS: dict[str, Tasks] = {
    "split-two": partial(split, classes=5),
    "split-two-fits": partial(split, classes=5),
    "split-five": partial(split, classes=2),
    "permuted": permuted,
    "brighter": brighter,
    "labels": labels,
    "stationary": stationary,
}


def make(name: str, arrays: Arrays, seed: int, steps: int = 250, batch: int = 32) -> Stream:
    """The stream of this name with ``steps`` batches per task (``STATIONARY`` times as many if it is stationary).

    Raises:
        ValueError: the name is unknown, or ``steps`` or ``batch`` is below 1.
    """
    if name not in STREAMS:
        raise ValueError(f"Expected stream to be one of {tuple(STREAMS)}, got {name!r}.")
    if min(steps, batch) < 1:
        raise ValueError(f"Expected steps and batch to be at least 1, got steps={steps}, batch={batch}.")
    tasks = tuple(STREAMS[name](arrays, torch.Generator().manual_seed(seed)))
    fits = (1,) * len(tasks) if name == "split-two-fits" else (len(tasks),)
    return Stream(name, tasks, fits, steps * (STATIONARY if name == "stationary" else 1), batch, seed)
