"""Rules that collect the inputs of a layer in forward passes."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from sal_lightning.layers import Reals
from sal_lightning.rules.base import Rule, State

ROWS = 128  # rows of a batch that are sampled
DENSE, EVERY = 16, 16  # the first DENSE steps of a window all update it, then one in EVERY
BETA = 0.99  # decay of a window: about a hundred steps
FLOOR = 0.3  # added to each eigenvalue in a distance, in mean eigenvalues


class InputRule(Rule):
    """A rule that updates its statistics with the inputs of one layer, and measures their novelty."""

    modules: tuple[nn.Module, ...]  # the modules whose input is collected
    real: Reals  # which rows of each input are not padding; None: all
    surprise: Tensor | None  # log distance of this step's inputs from the window: (sum, count)

    @property
    @abstractmethod
    def used(self) -> bool:
        """Whether any input was ever collected, in this training or before."""

    @abstractmethod
    def read(self, args: tuple[Any, ...], step: int) -> Tensor:
        """Extract what this rule collects from the arguments of a forward pass."""

    @abstractmethod
    def collect_rows(self, rows: Tensor, measured: bool = False) -> None:
        """Collect what ``read`` returned.

        Args:
            rows: of one forward pass; those of several passes in a step add up.
            measured: whether to measure their novelty.
        """

    def collect(self, args: tuple[Any, ...], step: int, measured: bool = False) -> None:
        """Collect the input of a forward pass."""
        self.collect_rows(self.read(args, step), measured)

    @abstractmethod
    def refresh(self) -> None:
        """Measure novelty against all data of the window so far, from the next batch on."""

    @abstractmethod
    def set_reference(self, window: State | None) -> None:
        """Measure novelty against this window, as returned by ``window_state()``; None: against the rule's own."""

    @abstractmethod
    def pending(self) -> State:
        """What was collected in this step so far."""

    @abstractmethod
    def resume(self, pending: State) -> None:
        """Continue with what ``pending`` returned."""
