"""Layers that ran since the last step, in order, and how unusual the inputs were that come from outside."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sal_lightning import distributed
from sal_lightning.consolidation_reasons import LOSS
from sal_lightning.coverage import Coverage, Eye
from sal_lightning.forward_hooks import exactly
from sal_lightning.output_gradient import OutputGradient
from sal_lightning.readback import Readback
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.embedding import EmbeddingRule
from sal_lightning.rules.subspace import SubspaceRule
from sal_lightning.sample_sketch import SampleSketch, whole

ASKED = 4  # layers that are asked how unusual their input is, at most


class _Pass(NamedTuple):
    """A forward pass in evaluation mode: it counts if a backward pass follows."""

    order: int
    eye: Eye
    read: Any  # what the eye read of its input; None where it is not due
    samples: Tensor | None  # whole samples of it
    outside: bool  # whether it is data from outside


class StepInputs:
    """The eyes whose layer ran since the last step.

    Novelty is asked of the first, and of those whose input comes from outside: it depends on no weight that is trained,
    so it does not change while the network learns.
    """

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.known = set[Rule]()  # the eyes whose layer ever ran
        self.now: dict[Eye, int] = {}  # in this step, in order, with the number of its first pass
        self._count = 0  # forward passes
        self._begun: Eye | None = None  # the first in this step, its backward pass known or not,
        self._led: Eye | None = None  # and in the last step
        self._confirmed: list[_Pass] = []  # passes in evaluation mode whose backward pass came
        self.samples: dict[Eye, SampleSketch] = {}  # of the inputs from outside
        self._positions: dict[Eye, bool] = {}  # whether a table's input is positions, which say nothing of the data
        self.asked: dict[Eye, Readback | None] = {}  # in this step, with their surprise on its way from the device

    @property
    def first(self) -> Eye | None:
        """The eye of the layer that ran first."""
        return next(iter(self.now), None)

    @property
    def last(self) -> nn.Module | None:
        """The layer that ran last in this step, tables of embeddings left out; before any, the last of the model."""
        eyes = [eye for eye in self.now or self.coverage.eyes if isinstance(eye, SubspaceRule)]
        return eyes[-1].layer.module if eyes else None

    def collect(self, eye: Eye, given: tuple[Any, ...], step: int) -> None:
        """A layer runs: look at what it is given, if there is anything and this step is one of those looked at."""
        if not given[0].numel():
            return  # as an expert that no token was sent to
        self._count += 1
        self.known.add(eye)
        self.now.setdefault(eye, self._count)
        ask = self._asks(eye, self._is_outside(eye, given[0]))
        if ask or self._due(eye):
            with exactly(eye.device):
                given = tuple(map(distributed.local, given))
                eye.collect(given, step, ask)
                if ask:
                    self._ask(eye, _whole(eye, given))

    def defer(self, eye: Eye, given: tuple[Any, ...], step: int) -> Callable[[], None]:
        """Read what a layer in evaluation mode is given; it counts once what is returned is called."""
        if not given[0].numel():
            return lambda: None
        self._count += 1
        self._begun = self._begun or eye
        read, samples, outside = None, None, self._is_outside(eye, given[0])
        asked = outside or eye in (self._begun, self._led)
        if asked or self._due(eye):
            with exactly(eye.device):
                given = tuple(map(distributed.local, given))
                read, samples = eye.read(given, step), _whole(eye, given) if asked else None
        one, confirmed = [_Pass(self._count, eye, read, samples, outside)], self._confirmed
        # Only the graph of the pass keeps what was read: without a backward pass both are dropped.
        return lambda: confirmed.append(one.pop()) if one else None

    def gather(self) -> None:
        """Count the passes in evaluation mode whose backward pass came, in the order of their forward passes."""
        if not self._confirmed:
            return
        passes = sorted(self._confirmed, key=lambda p: p.order)
        self._confirmed.clear()
        self.known.update(p.eye for p in passes)
        for p in reversed(passes):
            self.now[p.eye] = min(p.order, self.now.get(p.eye, p.order))
        self.now = dict(sorted(self.now.items(), key=lambda item: item[1]))
        for p in passes:
            if p.read is not None:
                with exactly(p.eye.device):
                    ask = self._asks(p.eye, p.outside)
                    p.eye.collect_rows(p.read, ask)
                    if ask:
                        self._ask(p.eye, p.samples)

    def update(self, unit: float = 1.0) -> None:
        """Take this step into all windows, of gradients ``unit`` times too large."""
        for rule in (*self.coverage.rules, *(eye for eye in self.asked if eye not in self.coverage.rules)):
            rule.update(unit)
        for eye in self.asked:
            if eye in self.samples:
                self.samples[eye].update()

    def surprises(self, output: OutputGradient) -> dict[str, float]:
        """The signals of this step by name: how unusual the inputs of the layers asked are on average, and the loss.

        Args:
            output: the gradient at the model's output; the signal is the log of its size.
        """
        numbers = self._common(output) if distributed.count() > 1 else self._own(output)
        found = {name: total / n for name, (total, n) in numbers.items() if n}
        size = found.pop(LOSS, 0.0)
        return found if size <= 0 else found | {LOSS: math.log(size)}

    def refresh(self, signals: Collection[str]) -> None:
        """Measure these signals by all that was seen so far, from the next batch on."""
        for eye in self.coverage.eyes:
            if _rows(eye) in signals:
                eye.refresh()
            if _samples(eye) in signals and eye in self.samples:
                self.samples[eye].refresh()

    def clear(self) -> None:
        """Begin new windows of whole samples."""
        for samples in self.samples.values():
            samples.clear()

    def discard_step(self) -> None:
        """Drop what was gathered since the last step."""
        for eye in self.coverage.eyes:
            eye.discard_step()
        for samples in self.samples.values():
            samples.discard_step()
        self._led = self.first or self._led
        self.now.clear()
        self.asked.clear()
        self._confirmed.clear()
        self._begun = None

    def drop(self, eyes: Collection[Rule]) -> None:
        """These eyes are gone: their layers were replaced."""
        self.now = {eye: order for eye, order in self.now.items() if eye not in eyes}
        self.known.difference_update(eyes)
        self._confirmed[:] = [p for p in self._confirmed if p.eye not in eyes]
        for kept in (self.samples, self.asked, self._positions):
            for eye in [eye for eye in kept if eye in eyes]:
                del kept[eye]
        self._begun = self._led = None

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

    def state_dict(self) -> State:
        """The windows of whole samples, of each layer by its name."""
        return {eye.name: samples.state_dict() for eye, samples in self.samples.items()}

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        for eye in self.coverage.eyes:
            if eye.name in state:
                self.samples[eye] = SampleSketch()
                self.samples[eye].load_state_dict(state[eye.name], eye.device)

    def _due(self, eye: Eye) -> bool:
        return eye.due and eye in self.coverage.rules

    def _asks(self, eye: Eye, outside: bool) -> bool:
        """Whether this eye is asked, in this step, how unusual its input is; of several weights of a layer the first.

        Where the first layer is given positions the second one counts as the first.
        """
        if eye not in self.asked:
            new = all(eye.modules[0] not in other.modules for other in self.asked)
            first = not self.asked and not self._positions.get(eye)
            if new and (first or (outside and len(self.asked) < ASKED)):
                self.asked[eye] = None
        return eye in self.asked

    def _is_outside(self, eye: Eye, x: Tensor) -> bool:
        """Whether a layer's input depends on no weight that is trained, and is not the numbers 0, 1, 2, … alone."""
        if isinstance(eye, EmbeddingRule) and eye not in self._positions and x.dim() and x.shape[-1] > 1:
            self._positions[eye] = bool((x.detach().diff() == 1).all())  # waits for the device, once a table
        return not x.requires_grad and not self._positions.get(eye)

    def _ask(self, eye: Eye, samples: Tensor | None) -> None:
        if samples is not None:
            self.samples.setdefault(eye, SampleSketch()).collect(samples)
        if distributed.count() == 1 and (numbers := self._numbers(eye)):
            self.asked[eye] = Readback(torch.stack(list(numbers.values())))

    def _numbers(self, eye: Eye) -> dict[str, Tensor]:
        """The surprise of one eye by its signals, each (sum, count), of those that know what is usual."""
        samples = self.samples.get(eye)
        parts = {_rows(eye): eye.surprise, _samples(eye): None if samples is None else samples.surprise}
        return {name: part for name, part in parts.items() if part is not None}

    def _own(self, output: OutputGradient) -> dict[str, tuple[float, float]]:
        """(sum, count) of each signal where this process is the only one."""
        numbers: dict[str, tuple[float, float]] = {}
        for eye, answer in self.asked.items():
            if answer is not None:
                numbers |= dict(zip(self._numbers(eye), map(tuple, answer.read()), strict=True))
        if (size := output.read()) is not None:
            numbers[LOSS] = size, 1.0
        return numbers

    def _common(self, output: OutputGradient) -> dict[str, tuple[float, float]]:
        """(sum, count) of each signal over all processes; a layer that ran in one of them is known in all."""
        eyes, nothing = self.coverage.eyes, torch.zeros(2, device=self.coverage.device)
        names = [*(name(eye) for eye in eyes for name in (_rows, _samples)), LOSS]
        mine = {name: part for eye in self.asked for name, part in self._numbers(eye).items()}
        if output.total is not None:
            mine[LOSS] = torch.stack([output.total, torch.ones_like(output.total)])
        known = torch.tensor([float(eye in self.known) for eye in eyes], device=self.coverage.device)
        parts = [mine.get(name, nothing).to(nothing) for name in names]
        numbers = distributed.mean([torch.cat([*parts, known])])[0].tolist()
        pairs, anywhere = numbers[: 2 * len(names)], numbers[2 * len(names) :]
        self.known.update(eye for eye, share in zip(eyes, anywhere, strict=True) if share)
        return dict(zip(names, zip(pairs[::2], pairs[1::2], strict=True), strict=True))


def _whole(eye: Eye, given: tuple[Any, ...]) -> Tensor | None:
    """The whole samples of what a layer is given; of tokens all are looked at together."""
    if isinstance(eye, EmbeddingRule) or not given[0].is_floating_point():
        return None
    x: Tensor = given[0].detach()
    return whole(eye.layer.module, x, eye.real[0])


def _rows(eye: Eye) -> str:
    return f"the input of {eye.name}"


def _samples(eye: Eye) -> str:
    return f"whole samples of the input of {eye.name}"
