"""Pulse-Split-Cascade: states evolve, split, merge and expire; selection is by resonance, without rewards or ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from sal_lightning.emergence.field import COHERENT, NOVEL
from sal_lightning.emergence.population import Emergence, Fate, Lineage, Population, Pulse
from sal_lightning.emergence.selection import MERGE, Selection, agreement, emergence_select, leaders, medoid, unit

__all__ = ["Emergence", "Evolve", "Fate", "Lineage", "Measure", "Pulse", "PulseCascade", "agreement"]

Evolve = Callable[[Tensor], Tensor]  # all living states (n, d) → their next values (n, d)
Measure = Callable[[Tensor], tuple[Tensor, Tensor]]  # states (n, d) → coherence and novelty of each, (n,) in [0, 1]


class PulseCascade(Population):
    """A population of states ("pulses") that evolves in generations; both are bounded, and runs are reproducible.

    >>> cascade = PulseCascade()
    >>> cascade.initiate(torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.0, 1.0]]))
    >>> cascade.step(evolve_fn=lambda states: 2 * states)
    True
    >>> [pulse.fate for pulse in cascade.pulses]
    ['alive', 'merged', 'alive']
    >>> cascade.emerge().pulse.state, round(cascade.emerge().share, 2)
    (tensor([1.9000, 0.3000]), 0.67)

    Args:
        max_pulses: >= 1; largest number of living pulses.
        max_generations: >= 0; largest number of steps.
        merge: in [-1, 1]; pulses merge at this cosine similarity or above.
        coherent: in [0, 1]; a pulse splits if its coherence is at least this,
        novel: in [0, 1]; and its novelty at least this.
        expire: in [0, 1]; a pulse expires if its coherence is below this.
        spread: >= 0; distance of a new pulse from its parent, relative to the parent's norm. Below 0.75 the new pulse
            is so similar that it merges back in the next step, unless their evolution separates them.
        generator: random generator for the direction of this distance; default: a new one with seed 0.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        max_pulses: int = 64,
        max_generations: int = 32,
        merge: float = MERGE,
        coherent: float = COHERENT,
        novel: float = NOVEL,
        expire: float = 0.1,
        spread: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _whole("max_pulses", max_pulses, 1)
        _whole("max_generations", max_generations, 0)
        for name, value, least in (("merge", merge, -1), ("coherent", coherent, 0), ("novel", novel, 0)):
            _within(name, value, least)
        _within("expire", expire, 0)
        if not 0 <= spread < float("inf"):
            raise ValueError(f"Expected spread to be a number >= 0, got {spread!r}.")
        self.max_pulses, self.max_generations = max_pulses, max_generations
        self.merge, self.coherent, self.novel, self.expire, self.spread = merge, coherent, novel, expire, spread
        self.generator = generator or torch.Generator().manual_seed(0)

    # --- a run ---

    def initiate(self, states: Tensor, pulses: int | None = None) -> None:
        """Start anew with the states (n, d), or with ``pulses`` random states around a single one (d,).

        Raises:
            ValueError: the states have another shape, are not finite, or are more than ``max_pulses``.
        """
        first = states.detach()[None] if states.dim() == 1 else states.detach()
        unit(first)
        count = len(first) if pulses is None else pulses
        if not 1 <= count <= self.max_pulses or (pulses is not None and len(first) > 1):
            raise ValueError(f"Expected 1 to {self.max_pulses} states, or one and as many pulses, got {count}.")
        self._begin(first.clone() if count == len(first) else self._near(first.expand(count, -1)))

    def step(self, evolve_fn: Evolve, measure_fn: Measure = agreement) -> bool:
        """Run one generation: all pulses evolve; incoherent ones expire, similar ones merge, coherent novel ones split.

        Args:
            evolve_fn: maps all living states (n, d) to their next values (n, d).
            measure_fn: maps the states (n, d) to their coherence and novelty, two tensors (n,) in [0, 1].

        Returns:
            True, or False after ``max_generations``, when nothing changes.

        Raises:
            ValueError: ``initiate`` was not called, or a function returned another shape or range; the cascade is
                unchanged.
        """
        if not self._living:
            raise ValueError("Expected initiate() before step(), got no pulses.")
        if self.generation >= self.max_generations:
            return False
        states = _evolved(evolve_fn(self._states.clone()), self._states)
        coherence, novelty = (_measured(x, states) for x in measure_fn(states.clone()))
        self.generation += 1
        self._states = states
        splits = self._expire(coherence >= self.expire, (coherence >= self.coherent) & (novelty >= self.novel))
        self._split(self._merge(splits))
        self._note()
        return True

    def emerge(self) -> Emergence:
        """The medoid of the largest lineage; similar pulses count for the lineage of the oldest of them.

        Raises:
            ValueError: ``initiate`` was not called.
        """
        if not self._living:
            raise ValueError("Expected initiate() before emerge(), got no pulses.")
        descent = [self._record[number].lineage for number in self._living]
        kin = [descent[i] for i in leaders(self._states, self.merge).tolist()]
        found = medoid(
            self._states, torch.tensor([kin.index(number) for number in kin], device=self._states.device), self._weight
        )
        chosen, lineage = self.pulses[self._living[found.chosen]], kin[found.chosen]
        of = next(x for x in self.lineages if x.number == lineage)
        return Emergence(chosen, of, found.share, found.entropy, found.resonance)

    def select(self, embeddings: Tensor) -> Selection:
        """Select from given candidates (n, d), without evolution: ``emergence_select`` with this ``merge``."""
        return emergence_select(embeddings, self.merge)

    # --- parts of a step ---

    def _expire(self, stays: Tensor, splits: Tensor) -> Tensor:
        """Expire the pulses outside ``stays`` (n,); if that were all of them, none expires."""
        if not stays.any():
            return splits
        self._end(stays, "expired")
        return splits[stays]

    def _merge(self, splits: Tensor) -> Tensor:
        """Merge similar pulses into their weighted mean, which splits if the oldest of them would."""
        leader = leaders(self._states, self.merge)
        stays = leader == torch.arange(len(leader), device=leader.device)
        weight = torch.zeros_like(self._weight).index_add_(0, leader, self._weight)
        sums = torch.zeros_like(self._states, dtype=torch.double)
        sums.index_add_(0, leader, self._weight[:, None] * self._states.double())
        means = (sums / weight[:, None].clamp(min=torch.finfo(weight.dtype).tiny)).to(self._states)
        alone = torch.bincount(leader, minlength=len(leader)) == 1
        self._states = self._states.where(alone[:, None], means)
        self._end(stays, "merged", [self._living[i] for i in leader.tolist()])
        self._weight = weight[stays]
        return splits[stays]

    def _split(self, splits: Tensor) -> None:
        """Split the pulses in ``splits`` (n,), oldest first, up to ``max_pulses``; both get half of the weight."""
        room = self.max_pulses - len(self._living)
        parents = splits.nonzero()[:room, 0]
        if not len(parents):
            return
        self._weight[parents] /= 2
        self._states = torch.cat([self._states, self._near(self._states[parents])])
        self._weight = torch.cat([self._weight, self._weight[parents]])
        self._living += [self._bear(self._living[i]) for i in parents.tolist()]

    def _near(self, states: Tensor) -> Tensor:
        """States at a distance of ``spread`` times the norm from these, in random directions."""
        noise = torch.randn(states.shape, generator=self.generator, device=self.generator.device).to(states)
        length = states.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        near: Tensor = states + self.spread * length * noise
        return near


def _evolved(new: object, old: Tensor) -> Tensor:
    if not isinstance(new, Tensor) or new.shape != old.shape or not new.isfinite().all():
        kind = f"{(*new.shape,)}" if isinstance(new, Tensor) else type(new).__name__
        raise ValueError(f"Expected evolve_fn to return finite states of shape {(*old.shape,)}, got {kind}.")
    return new.detach().to(old.device, old.dtype)


def _measured(x: object, states: Tensor) -> Tensor:
    values = torch.as_tensor(x, device=states.device)
    if values.shape != states.shape[:1] or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"Expected measure_fn to return two of ({len(states)},) numbers in [0, 1], got {x!r}.")
    return values


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"Expected {name} to be a whole number >= {least}, got {value!r}.")


def _within(name: str, value: float, least: float) -> None:
    if not least <= value <= 1:
        raise ValueError(f"Expected {name} to be in [{least}, 1], got {value!r}.")
