"""The pulses of a cascade: living ones as rows of one tensor, oldest first, and a record of all."""

from collections import defaultdict
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Fate = Literal["alive", "merged", "expired"]


class Pulse(NamedTuple):
    """One pulse, living or not. Generations are counted from 0, the generation of the first pulses."""

    number: int  #: index in order of creation
    lineage: int  #: the number of the first pulse it descends from
    parent: int | None  #: number of the pulse that it was split from
    born: int  #: its first generation
    ended: int | None  #: the generation in which it expired or merged
    fate: Fate
    into: int | None  #: number of the pulse that it merged into
    weight: float  #: number of first pulses that it represents, now or when it ended
    state: Tensor | None  #: (d,); None after its end


class Lineage(NamedTuple):
    """A first pulse and all its descendants."""

    number: int  #: number of the first pulse
    pulses: tuple[int, ...]  #: numbers of its pulses, in order of creation
    weights: tuple[float, ...]  #: its weight in each generation


class Emergence(NamedTuple):
    """The selected pulse, its lineage, and measures of agreement."""

    pulse: Pulse
    lineage: Lineage
    share: float  #: share of its lineage in the total weight, in (0, 1]
    entropy: float  #: entropy of the lineages' shares, in nats
    resonance: float  #: weighted mean cosine similarity to all pulses, in [-1, 1]


class Population:
    """Living pulses, their descent, and the weight of each lineage in each generation."""

    def __init__(self) -> None:
        self.generation = 0
        self._states = torch.empty(0, 0)  # (n, d), of the living
        self._weight = torch.empty(0)  # (n,)
        self._living: list[int] = []  # their numbers, ascending
        self._record: list[Pulse] = []  # every pulse by number, states left out
        self._voices: list[dict[int, float]] = []  # by generation and lineage

    @property
    def pulses(self) -> list[Pulse]:
        """All pulses, living or not, by number."""
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
        """All lineages, in the order of their first pulses."""
        members = defaultdict(list)
        for p in self._record:
            members[p.lineage].append(p.number)
        return [
            Lineage(number, tuple(found), tuple(voices.get(number, 0.0) for voices in self._voices))
            for number, found in members.items()
        ]

    def _begin(self, states: Tensor) -> None:
        """Start anew with pulses of these states (n, d), each of weight 1."""
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
        """Keep the pulses in ``stays`` (n,), and record the fate of the others."""
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
