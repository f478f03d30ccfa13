"""Base class of rules: statistics of a group of parameters, their stability, and the projection it defines."""

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
    """Measures the stability of a group of parameters, consolidates it, and masks and restores their changes."""

    grain: str  # as reported by ``coverage()``
    pulled = True  # whether the pull acts on these parameters

    @abstractmethod
    def update(self, unit: float = 1.0) -> None:
        """Update the window with the inputs and gradients of this step.

        Args:
            unit: factor by which the gradients, not masked yet, are scaled.
        """

    @abstractmethod
    def consolidate(self) -> None:
        """Add the window to what is held."""

    @abstractmethod
    def clear(self) -> None:
        """Start a new window."""

    @abstractmethod
    def window_state(self) -> State:
        """The window as tensors and numbers only, which ``clear`` and later steps leave unchanged."""

    @abstractmethod
    def load_window(self, state: State) -> None:
        """Replace the window by one that ``window_state`` returned."""

    @abstractmethod
    def stabilities(self) -> list[Scores]:
        """Stability scores of the trained weights; the numbers of weights they represent sum to ``trained()``."""

    def bands(self) -> Tensor:
        """Numbers of (protected, neutral, volatile) weights, (3,); they sum to ``trained()``, which must not be 0."""
        return torch.stack([bands(*scores) for scores in self.stabilities()]).sum(0)

    @abstractmethod
    def state_dict(self) -> State:
        """State as tensors and numbers only."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Load the state of a rule of the same name."""

    @abstractmethod
    def pack(self, memory: Any) -> State:
        """Convert a memory to named tensors, for ``torch.load(weights_only=True)``; None gives an empty dict."""

    @abstractmethod
    def unpack(self, state: State) -> Any:
        """Inverse of ``pack``: the memory, on the parameters' device."""

    def rolled_back(self) -> None:
        """A provisional consolidation was rolled back: the memory is the one of before."""

    def drift(self) -> Tensor | None:
        """Movement along held directions as (moved², size²), (2,); None if the rule keeps no reference."""
        return None

    def discard_step(self) -> None:
        """Discard what was collected in a step that does not enter the statistics."""

    @property
    def due(self) -> bool:
        """Whether the inputs of this step enter the window."""
        return False

    def window_tensors(self) -> list[Tensor]:
        """Tensors of this process's window that are averaged over processes."""
        return []

    def set_window(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors of ``window_tensors()``, in the same order."""

    def adapt_hold(self) -> None:
        """Adapt the hold to the statistics of the present data in the window."""

    def overlap(self) -> Tensor | float:
        """Overlap of present and past inputs, a scalar in [0, 1]; 1 where it is not measured."""
        return 1.0

    def tensors(self) -> list[Tensor]:
        """All tensors that this rule keeps between steps, for ``memory()``."""
        return list(_tensors(self.state_dict()))


def grown(x: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """Pad ``x`` with zeros at the end of each dimension to ``shape``; returned as it is if it has that shape.

    Raises:
        ValueError: ``x`` has other dimensions, or is larger than ``shape``; ``what`` names it in the message.
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
    """Average the windows over all processes."""
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
