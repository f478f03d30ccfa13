"""Layers that ran since the last step, in order, and how unusual the input of the first one was."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sal_lightning import processes
from sal_lightning.covering import Coverage, Eye
from sal_lightning.readback import Readback
from sal_lightning.rules.base import Rule, State
from sal_lightning.surroundings import exactly


class _Pass(NamedTuple):
    """A forward pass in evaluation mode: it counts if a backward pass follows."""

    order: int
    eye: Eye
    read: Any  # what the eye read of its input; None where it is not due


class Reached:
    """The eyes whose layer ran since the last step; novelty is asked of the first."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.known = set[Rule]()  # the eyes whose layer ever ran
        self.now: dict[Eye, int] = {}  # in this step, in order, with the number of its first pass
        self._count = 0  # forward passes
        self._begun: Eye | None = None  # the first in this step, its backward pass known or not,
        self._led: Eye | None = None  # and in the last step
        self._confirmed: list[_Pass] = []  # passes in evaluation mode whose backward pass came
        self._answer: Readback | None = None  # this step's surprise, on its way from the device

    @property
    def first(self) -> Eye | None:
        """The eye of the layer that ran first."""
        return next(iter(self.now), None)

    def see(self, eye: Eye, given: tuple[Any, ...], step: int) -> None:
        """A layer runs: look at what it is given, if there is anything and this step is one of those looked at."""
        if not given[0].numel():
            return  # as an expert that no token was sent to
        self._count += 1
        self.known.add(eye)
        self.now.setdefault(eye, self._count)
        ask = self.first is eye
        if ask or self._due(eye):
            with exactly(eye.device):
                eye.see(tuple(map(processes.local, given)), step, ask)
            if ask and eye.surprise is not None and processes.count() == 1:
                self._answer = Readback(eye.surprise)

    def defer(self, eye: Eye, given: tuple[Any, ...], step: int) -> Callable[[], None]:
        """Read what a layer in evaluation mode is given; it counts once what is returned is called."""
        if not given[0].numel():
            return lambda: None
        self._count += 1
        self._begun = self._begun or eye
        read = None
        if eye in (self._begun, self._led) or self._due(eye):
            with exactly(eye.device):
                read = eye.read(tuple(map(processes.local, given)), step)
        one, confirmed = [_Pass(self._count, eye, read)], self._confirmed
        # Only the graph of the pass keeps what was read: without a backward pass both are dropped.
        return lambda: confirmed.append(one.pop()) if one else None

    def gather(self) -> None:
        """Count the passes in evaluation mode whose backward pass came, in the order of their forward passes."""
        if not self._confirmed:
            return
        passes, self._answer = sorted(self._confirmed, key=lambda p: p.order), None
        self._confirmed.clear()
        self.known.update(p.eye for p in passes)
        for p in reversed(passes):
            self.now[p.eye] = min(p.order, self.now.get(p.eye, p.order))
        self.now = dict(sorted(self.now.items(), key=lambda item: item[1]))
        for p in passes:
            if p.read is not None:
                with exactly(p.eye.device):
                    p.eye.take(p.read, p.eye is self.first)

    def observers(self) -> list[Rule]:
        """Who takes this step into its window."""
        rules = self.coverage.rules
        return rules if self.first is None or self.first in rules else [*rules, self.first]

    def surprise(self) -> float | None:
        """How unusual the rows of all processes are on average; None while nobody can say."""
        parts = None if self.first is None else self.first.surprise
        if processes.count() > 1:
            return self._common_surprise(parts) if self.coverage.eyes else None
        answer = Readback(parts) if self._answer is None and parts is not None else self._answer
        total, n = answer.read() if answer is not None else (0.0, 0.0)
        return total / n if n else None

    def forget(self) -> None:
        """Drop what was gathered since the last step."""
        for eye in self.coverage.eyes:
            eye.forget_step()
        self._led = self.first or self._led
        self.now.clear()
        self._confirmed.clear()
        self._begun = self._answer = None

    def drop(self, eyes: Collection[Rule]) -> None:
        """These eyes are gone: their layers were replaced."""
        self.now = {eye: order for eye, order in self.now.items() if eye not in eyes}
        self.known.difference_update(eyes)
        self._confirmed[:] = [p for p in self._confirmed if p.eye not in eyes]
        self._begun = self._led = self._answer = None

    def pending(self) -> State:
        """Rows of passes that another optimizer has stepped since, of each eye by its name."""
        self.gather()
        return {eye.name: eye.pending() for eye in self.now}

    def resume(self, pending: State) -> None:
        """Go on with these rows."""
        eyes = {eye.name: eye for eye in self.coverage.eyes}
        for name in filter(eyes.__contains__, pending):
            eyes[name].resume(pending[name])
            self._count += 1
            self.now[eyes[name]] = self._count

    def _due(self, eye: Eye) -> bool:
        return eye.due and eye in self.coverage.rules

    def _common_surprise(self, parts: Tensor | None) -> float | None:
        """The surprise of all processes; a layer that ran in one of them is known in all."""
        eyes = self.coverage.eyes
        known = torch.tensor([float(eye in self.known) for eye in eyes], device=self.coverage.device)
        parts = known.new_zeros(2) if parts is None else parts
        total, n, *anywhere = processes.mean([torch.cat([parts, known])])[0].tolist()
        self.known.update(eye for eye, share in zip(eyes, anywhere, strict=True) if share)
        return total / n if n else None
