"""The base class of rules: statistics of some parameters, what is held of them, and its projection."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sal_lightning import distributed
from sal_lightning.rules.projection import Projection
from sal_lightning.rules.scores import Scores, bands

State = dict[str, Any]


class Rule(Projection):
    """Measures the stability of some parameters, consolidates it, and holds back changes to them."""

    grain: str  # the word for it in ``coverage()``

    @abstractmethod
    def update(self, unit: float = 1.0) -> None:
        """Take this step's inputs and gradients (still whole, ``unit`` times their size) into the window."""

    @abstractmethod
    def consolidate(self) -> None:
        """Add the window to what is held."""

    @abstractmethod
    def clear(self) -> None:
        """Begin a new window."""

    @abstractmethod
    def stabilities(self) -> list[Scores]:
        """What is held how firmly; the numbers of weights that they stand for sum to ``trained()``."""

    def bands(self) -> Tensor:
        """Weights that are (protected, neutral, volatile): counts that sum to ``trained()``, which must not be 0."""
        return torch.stack([bands(*scores) for scores in self.stabilities()]).sum(0)

    @abstractmethod
    def state_dict(self) -> State:
        """Tensors and numbers only."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Continue where another rule of the same name stood."""

    @abstractmethod
    def pack(self, memory: Any) -> State:
        """A memory as named tensors, for ``torch.load(weights_only=True)``; empty for None."""

    @abstractmethod
    def unpack(self, state: State) -> Any:
        """The memory that ``pack`` packed, on the parameters' device."""

    def drift(self) -> Tensor | None:
        """How far what is held has moved, as (moved², size²); None where the rule keeps no reference."""
        return None

    def discard_step(self) -> None:
        """Drop what was gathered in a step that will not be observed."""

    @property
    def due(self) -> bool:
        """Whether the window wants the inputs of this step."""
        return False

    def window_tensors(self) -> list[Tensor]:
        """What of this process's window is averaged with the others'."""
        return []

    def set_window(self, tensors: Sequence[Tensor]) -> None:
        """Put the averages in its place."""

    def adapt_hold(self) -> None:
        """What is held follows what the window shows that present data needs."""

    def tensors(self) -> list[Tensor]:
        """Everything this rule keeps between steps, for ``memory()``."""
        return list(_tensors(self.state_dict()))


def grown(x: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """``x`` with zeros where a larger shape is new; itself where it has that shape.

    Raises:
        ValueError: ``what`` had more than this.
    """
    old = tuple(x.shape)
    if old == tuple(shape):
        return x
    if len(old) != len(shape) or any(a > b for a, b in zip(old, shape, strict=True)):
        raise ValueError(
            f"Expected {what} to have at least the size {old} that it had when the state was saved, got {tuple(shape)}."
        )
    larger = x.new_zeros(tuple(shape))
    larger[tuple(slice(n) for n in old)] = x
    return larger


def share_windows(rules: Sequence[Rule]) -> None:
    """Give all processes one window: the mean of what they saw."""
    if distributed.count() > 1:
        windows = [rule.window_tensors() for rule in rules]
        merged = iter(distributed.mean([t for window in windows for t in window]))
        for rule, window in zip(rules, windows, strict=True):
            rule.set_window([next(merged) for _ in window])


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _tensors(v)
