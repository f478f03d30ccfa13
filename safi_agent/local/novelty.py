"""How unlike the prompts of training a prompt is, by the emergence field on the encoder's states."""

import math
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sal_lightning import EmergenceField
from sal_lightning.emergence.field import BETA

FAMILIAR = 0.95  # share of held-out prompts that are not new


class Novelty:
    """The share of a prompt's state outside the directions of the prompts of training, in [0, 1].

    States are the mean states of the last layer, (n, size), less the mean of the first training.
    """

    def __init__(self, center: Tensor, field: EmergenceField) -> None:
        self.center, self.field = center, field

    @classmethod
    def of(cls, states: Tensor) -> Self:
        """The field of some states, (n, size)."""
        made = cls(states.mean(0), EmergenceField())
        made.field.update(states - made.center)
        return made

    def update(self, states: Tensor, share: float) -> None:
        """Add further states, which count as this share of all, in (0, 1)."""
        steps = max(1, round(math.log(1 - min(share, 0.99)) / math.log(BETA)))
        self.field.update(states - self.center, steps)

    def measure(self, states: Tensor) -> list[float]:
        """The novelty of each state, (n, size)."""
        return [self.field.measure_novelty(state[None]) for state in states - self.center]

    def save(self, file: Path) -> None:
        """Write the field, which contains no prompt."""
        torch.save({"center": self.center, "field": self.field.state_dict()}, file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a field."""
        state = torch.load(file, weights_only=True)
        made = cls(state["center"], EmergenceField(state["field"]["rank"]))
        made.field.load_state_dict(state["field"])
        return made


def threshold(novelties: list[float]) -> float:
    """The novelty that 95 % of these held-out prompts do not exceed; 1 if there are none, above which nothing is."""
    ordered = sorted(novelties)
    return ordered[math.ceil(FAMILIAR * len(ordered)) - 1] if ordered else 1.0
