"""Statistics of one layer: a sketch of its input covariance, and the size of its gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning.distributed import shards
from sal_lightning.input_sketch import InputSketch
from sal_lightning.layers import Layer, Reals
from sal_lightning.rules.base import State
from sal_lightning.rules.demand import Demand
from sal_lightning.rules.input_rule import BETA, DENSE, EVERY, FLOOR, ROWS, InputRule
from sal_lightning.rules.parameters import squares


class InputStatistics(InputRule):
    """Updates a window of one layer: rows of its input, with a 1 appended where it has a bias, and its gradients.

    Args:
        layer: the layer as a matrix.
        parameters: its weight and, if it has one, its bias.
        rank: of the sketch.
    """

    def __init__(self, layer: Layer, parameters: dict[str, nn.Parameter], rank: int) -> None:
        super().__init__(layer.name or "model", parameters)
        self.layer, self.modules, self.rank = layer, layer.modules, rank
        self.inputs = layer.inputs
        self.d = self.inputs + (layer.bias is not None)
        self.window = InputSketch(self.d, rank, BETA, layer.groups)
        self.reference: InputSketch | None = None  # the sketch that novelty is measured against; None: the window
        self.demand = Demand(BETA)
        self.age = 0  # steps since the window began
        self.real: Reals = (None,) * 3
        self.seen: list[Tensor] = []  # rows of this step
        self.surprise: Tensor | None = None

    @property
    @override
    def due(self) -> bool:
        # Once in each EVERY steps, at a moving offset, so that layers used periodically are sampled too.
        return self.age < DENSE or self.age % EVERY == self.age // EVERY % EVERY

    @property
    def used(self) -> bool:
        """Whether any input was ever collected, in this training or before."""
        return self.holds or bool(self.window.weight > 0)

    def read(self, args: tuple[Any, ...], step: int) -> Tensor:
        """Sampled rows (groups, n, d) of the input in a forward pass."""
        return self.layer.read(args, ROWS, step, self.real)

    def collect_rows(self, rows: Tensor, measured: bool = False) -> None:
        """Collect the rows of one forward pass; if ``measured``, compute their novelty."""
        self.seen.append(rows)
        if measured and (sketch := self._reference_sketch()) is not None:
            distance = sketch.distance(self.seen[-1], FLOOR)
            # While the window is empty, as no process has collected anything, the count is 0.
            found = torch.stack([distance.sum(), distance.numel() * (sketch.weight > 0).float()])
            self.surprise = found if self.surprise is None else self.surprise + found

    def _reference_sketch(self) -> InputSketch | None:
        """The sketch that novelty is measured against; None if there is none yet."""
        if self.reference is not None:
            return None if self.reference.P is None else self.reference
        if self.age < DENSE or self.window.Y is None:
            return None
        if self.window.P is None:
            self.window.refresh(FLOOR)
        return self.window

    @override
    def set_reference(self, window: State | None) -> None:
        self.reference = None if window is None else InputSketch(self.d, self.rank, BETA, self.layer.groups)
        if self.reference is not None and window is not None:
            self.reference.load_state_dict(window["window"], self.device)

    def refresh(self) -> None:
        """Measure novelty against all data of the window so far, from the next batch on."""
        self.window.P = None

    def pending(self) -> State:
        """What was collected in this step so far."""
        return {"seen": list(self.seen), "surprise": self.surprise}

    def resume(self, pending: State) -> None:
        """Continue with what ``pending`` returned."""
        self.seen = [x.to(self.device) for x in pending["seen"] if x.shape[::2] == (self.layer.groups, self.d)]
        self.surprise = None if pending["surprise"] is None else pending["surprise"].to(self.device)

    def rows(self) -> Tensor | None:
        """This step's rows (groups, n, d), a 1 appended where the layer has a bias."""
        if not sum(x.shape[1] for x in self.seen):
            return None
        return torch.cat(self.seen, 1)

    @override
    def update(self, unit: float = 1.0) -> None:
        if self.due:
            steps = 1 if self.age < DENSE else EVERY
            if (x := self.rows()) is not None:
                self.window.update(x, steps, U=None if self.memory is None else self.memory.U)
            # Rows of the batch that starts a provisional window are discarded, since only some layers have them.
            if (x is not None or not self.age) and (G := [g for g in self.gradients() if g is not None]):
                # Each process has a part of the sum, and the parts are averaged.
                self.demand.update(squares(G) * shards(self.layer.weight) / unit**2, steps)
        self.age += 1
        self.discard_step()

    @override
    def discard_step(self) -> None:
        self.seen.clear()
        self.surprise = None

    @override
    def window_tensors(self) -> list[Tensor]:
        if self.window.Y is None:
            self.window.start(self.device)
        assert self.window.Y is not None
        demand = [t.to(self.device) for t in self.demand.tensors()]
        return [self.window.Y, self.window.trace, self.window.weight, self.window.along, *demand]

    @override
    def set_window(self, tensors: Sequence[Tensor]) -> None:
        self.window.Y, self.window.trace, self.window.weight, self.window.along = tensors[:4]
        self.demand.sum, self.demand.weight = tensors[4:]

    @override
    def clear(self) -> None:
        self.window.clear()
        self.demand.clear()
        self.age = 0

    @override
    def window_state(self) -> State:
        return {"age": self.age, "window": self.window.state_dict(), "demand": self.demand.state_dict()}

    @override
    def load_window(self, state: State) -> None:
        self.age = state["age"]
        self.window.load_state_dict(state["window"], self.device)
        self.demand.load_state_dict(state["demand"], self.device)
