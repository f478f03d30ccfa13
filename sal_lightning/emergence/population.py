"""Pulses, living or not: the living are the rows of one tensor, oldest first; of the others a record is kept."""

from collections import defaultdict
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Fate = Literal["alive", "merged", "expired"]


class Pulse(NamedTuple):
    """One pulse, living or not. It counts generations from 0, those of the first pulses."""

    number: int  #: in order of birth
    lineage: int  #: the number of the first pulse it descends from
    parent: int | None  #: whom it was split from
    born: int  #: its first generation
    ended: int | None  #: the generation that it did not reach
    fate: Fate
    into: int | None  #: whom it merged into
    weight: float  #: of how many first pulses it carries the voice; when it ended, if it did
    state: Tensor | None  #: (d,); of the living only


class Lineage(NamedTuple):
    """A first pulse and all that descend from it."""

    number: int  #: of the first pulse
    pulses: tuple[int, ...]  #: numbers, in order of birth
    weights: tuple[float, ...]  #: the voices it had in each generation


class Emergence(NamedTuple):
    """What emerged, and how many agree."""

    pulse: Pulse
    lineage: Lineage
    share: float  #: of the voices, in (0, 1]
    entropy: float  #: of the lineages' shares, in nats
    resonance: float  #: mean cosine similarity to all voices, in [-1, 1]


class Population:
    """Who lives, whom they descend from, and how many voices each lineage had in each generation."""

    def __init__(self) -> None:
        self.generation = 0
        self._states = torch.empty(0, 0)  # (n, d), of the living
        self._weight = torch.empty(0)  # (n,)
        self._living: list[int] = []  # their numbers, ascending
        self._record: list[Pulse] = []  # every pulse by number, states left out
        self._voices: list[dict[int, float]] = []  # by generation and lineage

    @property
    def pulses(self) -> list[Pulse]:
        """Every pulse that ever was, by number."""
        living = {number: i for i, number in enumerate(self._living)}
        weights = self._weight.tolist()
        return [
            p._replace(state=self._states[living[p.number]], weight=weights[living[p.number]])
            if p.number in living
            else p
            for p in self._record
        ]

    @property
    def lineages(self) -> list[Lineage]:
        """Every lineage, by the number of its first pulse."""
        members = defaultdict(list)
        for p in self._record:
            members[p.lineage].append(p.number)
        return [
            Lineage(number, tuple(found), tuple(voices.get(number, 0.0) for voices in self._voices))
            for number, found in members.items()
        ]

    def _begin(self, states: Tensor) -> None:
        """These live (n, d), each with a voice of its own, and nobody before them."""
        self._states = states
        self._weight = torch.ones(len(states), dtype=torch.double, device=states.device)
        self.generation, self._record, self._voices = 0, [], []
        self._living = [self._bear(None) for _ in range(len(states))]
        self._note()

    def _bear(self, parent: int | None) -> int:
        number = len(self._record)
        lineage = number if parent is None else self._record[parent].lineage
        self._record.append(Pulse(number, lineage, parent, self.generation, None, "alive", None, 1.0, None))
        return number

    def _end(self, stays: Tensor, fate: Fate, into: list[int] | None = None) -> None:
        """Keep those that stay, and write down what became of the others."""
        weights, living = self._weight.tolist(), self._living
        for i in (~stays).nonzero()[:, 0].tolist():
            number = living[i]
            self._record[number] = self._record[number]._replace(
                ended=self.generation, fate=fate, into=None if into is None else into[i], weight=weights[i]
            )
        self._living = [living[i] for i in stays.nonzero()[:, 0].tolist()]
        self._states, self._weight = self._states[stays], self._weight[stays]

    def _note(self) -> None:
        voices: dict[int, float] = defaultdict(float)
        for number, weight in zip(self._living, self._weight.tolist(), strict=True):
            voices[self._record[number].lineage] += weight
        self._voices.append(dict(voices))
