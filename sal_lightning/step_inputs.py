"""Inputs of the layers that ran since the last optimizer step, and how unusual they are."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sal_lightning import distributed
from sal_lightning.async_copy import Readback
from sal_lightning.change_detection import Batch
from sal_lightning.consolidation_reasons import LOSS
from sal_lightning.coverage import Coverage
from sal_lightning.output_gradient import OutputGradient
from sal_lightning.precision import full_precision
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.embedding import EmbeddingRule
from sal_lightning.rules.input_rule import InputRule
from sal_lightning.rules.subspace import SubspaceRule
from sal_lightning.sample_sketch import SampleSketch, whole

MEASURED = 4  # layers whose input novelty is measured, at most


class _Pass(NamedTuple):
    """The input of a forward pass in evaluation mode; it counts if a backward pass follows."""

    order: int
    rule: InputRule
    read: Any  # the rows that the rule read; None if it is not due
    samples: Tensor | None  # whole samples of the input
    outside: bool  # whether the input is data, not activations


class StepInputs:
    """The rules whose layer ran since the last optimizer step, with their inputs.

    Novelty is measured at the first layer, and at layers whose input is data: it depends on no trained weight, so it
    does not change while the network learns.
    """

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.known = set[Rule]()  # rules whose layer ever ran
        self.now: dict[InputRule, int] = {}  # those of this step, in order, with the number of their first pass
        self._count = 0  # forward passes
        self._begun: InputRule | None = None  # the first rule of this step, with or without a backward pass
        self._led: InputRule | None = None  # the first rule of the last step
        self._confirmed: list[_Pass] = []  # passes in evaluation mode that had a backward pass
        self.samples: dict[InputRule, SampleSketch] = {}  # sketches of whole samples of data
        self._positions: dict[InputRule, bool] = {}  # whether an embedding's inputs are positions, not data
        # Rules whose novelty is measured in this step, with the value while it is copied from the device.
        self.measured: dict[InputRule, Readback | None] = {}

    @property
    def first(self) -> InputRule | None:
        """The rule of the first layer that ran in this step."""
        return next(iter(self.now), None)

    @property
    def last(self) -> nn.Module | None:
        """The layer that ran last in this step, embeddings left out; before the first pass, the last of the model."""
        input_rules = [rule for rule in self.now or self.coverage.input_rules if isinstance(rule, SubspaceRule)]
        return input_rules[-1].layer.module if input_rules else None

    def collect(self, rule: InputRule, given: tuple[Any, ...], step: int) -> None:
        """Collect the input of a layer that runs, unless it is empty or the rule is not due in this step."""
        if not given[0].numel():
            return  # for example an expert without tokens
        self._count += 1
        self.known.add(rule)
        self.now.setdefault(rule, self._count)
        measured = self._is_measured(rule, self._is_outside(rule, given[0]))
        if measured or self._due(rule):
            with full_precision(rule.device):
                given = tuple(map(distributed.local, given))
                rule.collect(given, step, measured)
                if measured:
                    self._measure(rule, _whole(rule, given))

    def collect_later(self, rule: InputRule, given: tuple[Any, ...], step: int) -> Callable[[], None]:
        """Read the input of a layer in evaluation mode; it counts when the returned function is called."""
        if not given[0].numel():
            return lambda: None
        self._count += 1
        self._begun = self._begun or rule
        read, samples, outside = None, None, self._is_outside(rule, given[0])
        measured = outside or rule in (self._begun, self._led)
        if measured or self._due(rule):
            with full_precision(rule.device):
                given = tuple(map(distributed.local, given))
                read, samples = rule.read(given, step), _whole(rule, given) if measured else None
        one, confirmed = [_Pass(self._count, rule, read, samples, outside)], self._confirmed
        # Only the autograd graph refers to the rows, so they are freed with it if there is no backward pass.
        return lambda: confirmed.append(one.pop()) if one else None

    def confirm_deferred(self) -> None:
        """Count the passes in evaluation mode that had a backward pass, in the order of their forward passes."""
        if not self._confirmed:
            return
        passes = sorted(self._confirmed, key=lambda p: p.order)
        self._confirmed.clear()
        self.known.update(p.rule for p in passes)
        for p in reversed(passes):
            self.now[p.rule] = min(p.order, self.now.get(p.rule, p.order))
        self.now = dict(sorted(self.now.items(), key=lambda item: item[1]))
        for p in passes:
            if p.read is not None:
                with full_precision(p.rule.device):
                    measured = self._is_measured(p.rule, p.outside)
                    p.rule.collect_rows(p.read, measured)
                    if measured:
                        self._measure(p.rule, p.samples)

    def update(self, unit: float = 1.0, kind: Batch = Batch.FAMILIAR) -> None:
        """Update all windows with this step.

        Args:
            unit: the factor by which gradients are scaled.
            kind: how the batch compares with the window; windows that serve change detection only are updated with
                familiar batches.
        """
        for rule in self.coverage.rules:
            rule.update(unit)
        if kind is Batch.FAMILIAR:
            for rule in self.measured:
                if rule not in self.coverage.rules:
                    rule.update(unit)
                if rule in self.samples:
                    self.samples[rule].update()

    def signals(self, output: OutputGradient) -> dict[str, float]:
        """The signals of this step by name: mean novelty of the inputs of the measured layers, and the loss.

        Args:
            output: the gradient at the model's output; the signal is the log of its size.
        """
        numbers = self._common(output) if distributed.count() > 1 else self._own(output)
        found = {name: total / n for name, (total, n) in numbers.items() if n}
        size = found.pop(LOSS, 0.0)
        return found if size <= 0 else found | {LOSS: math.log(size)}

    def refresh(self, signals: Collection[str]) -> None:
        """Measure these signals against all data of the window so far, from the next batch on."""
        for rule in self.coverage.input_rules:
            if _rows(rule) in signals:
                rule.refresh()
            if _samples(rule) in signals and rule in self.samples:
                self.samples[rule].refresh()

    def clear(self) -> None:
        """Start new windows of whole samples."""
        for samples in self.samples.values():
            samples.clear()

    def discard_rows(self) -> None:
        """Discard the inputs that the rules collected since the last step."""
        for rule in self.coverage.input_rules:
            rule.discard_step()

    def discard_step(self) -> None:
        """Discard what was collected since the last step."""
        self.discard_rows()
        for samples in self.samples.values():
            samples.discard_step()
        self._led = self.first or self._led
        self.now.clear()
        self.measured.clear()
        self._confirmed.clear()
        self._begun = None

    def remove(self, rules: Collection[Rule]) -> None:
        """Remove rules whose layers were replaced."""
        self.now = {rule: order for rule, order in self.now.items() if rule not in rules}
        self.known.difference_update(rules)
        self._confirmed[:] = [p for p in self._confirmed if p.rule not in rules]
        for kept in (self.samples, self.measured, self._positions):
            for rule in [rule for rule in kept if rule in rules]:
                del kept[rule]
        self._begun = self._led = None

    def pending(self) -> State:
        """The data collected since the last step of this optimizer, by rule name."""
        self.confirm_deferred()
        return {rule.name: rule.pending() for rule in self.now}

    def resume(self, pending: State) -> None:
        """Continue with what ``pending`` returned."""
        input_rules = {rule.name: rule for rule in self.coverage.input_rules}
        for name in filter(input_rules.__contains__, pending):
            input_rules[name].resume(pending[name])
            self._count += 1
            self.now[input_rules[name]] = self._count

    def state_dict(self) -> State:
        """The sketches of whole samples, by the name of the rule."""
        return {rule.name: samples.state_dict() for rule, samples in self.samples.items()}

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state."""
        for rule in self.coverage.input_rules:
            if rule.name in state:
                self.samples[rule] = SampleSketch()
                self.samples[rule].load_state_dict(state[rule.name], rule.device)

    def _due(self, rule: InputRule) -> bool:
        return rule.due and rule in self.coverage.rules

    def _is_measured(self, rule: InputRule, outside: bool) -> bool:
        """Whether the novelty of this rule's input is measured in this step; once for several weights of a layer.

        If the input of the first layer is positions, the second layer counts as the first.
        """
        if rule not in self.measured:
            new = all(rule.modules[0] not in other.modules for other in self.measured)
            first = not self.measured and not self._positions.get(rule)
            if new and (first or (outside and len(self.measured) < MEASURED)):
                self.measured[rule] = None
        return rule in self.measured

    def _is_outside(self, rule: InputRule, x: Tensor) -> bool:
        """Whether a layer's input is data: it depends on no trained weight and is not positions."""
        if isinstance(rule, EmbeddingRule) and rule not in self._positions and x.dim() and x.shape[-1] > 1:
            self._positions[rule] = bool((x.detach().diff() == 1).all())  # one device synchronization per embedding
        return not x.requires_grad and not self._positions.get(rule)

    def _measure(self, rule: InputRule, samples: Tensor | None) -> None:
        if samples is not None:
            self.samples.setdefault(rule, SampleSketch()).collect(samples)
        if distributed.count() == 1 and (numbers := self._numbers(rule)):
            self.measured[rule] = Readback(torch.stack(list(numbers.values())))

    def _numbers(self, rule: InputRule) -> dict[str, Tensor]:
        """The novelty of one rule's input as (sum, count) by signal, where there is a reference."""
        samples = self.samples.get(rule)
        parts = {_rows(rule): rule.surprise, _samples(rule): None if samples is None else samples.surprise}
        return {name: part for name, part in parts.items() if part is not None}

    def _own(self, output: OutputGradient) -> dict[str, tuple[float, float]]:
        """(sum, count) of each signal in a single process."""
        numbers: dict[str, tuple[float, float]] = {}
        for rule, answer in self.measured.items():
            if answer is not None:
                numbers |= dict(zip(self._numbers(rule), map(tuple, answer.read()), strict=True))
        if (size := output.read()) is not None:
            numbers[LOSS] = size, 1.0
        return numbers

    def _common(self, output: OutputGradient) -> dict[str, tuple[float, float]]:
        """(sum, count) of each signal over all processes; a layer that ran in one process is known in all."""
        input_rules, nothing = self.coverage.input_rules, torch.zeros(2, device=self.coverage.device)
        names = [*(name(rule) for rule in input_rules for name in (_rows, _samples)), LOSS]
        mine = {name: part for rule in self.measured for name, part in self._numbers(rule).items()}
        if output.total is not None:
            mine[LOSS] = torch.stack([output.total, torch.ones_like(output.total)])
        known = torch.tensor([float(rule in self.known) for rule in input_rules], device=self.coverage.device)
        parts = [mine.get(name, nothing).to(nothing) for name in names]
        numbers = distributed.mean([torch.cat([*parts, known])])[0].tolist()
        pairs, anywhere = numbers[: 2 * len(names)], numbers[2 * len(names) :]
        self.known.update(rule for rule, share in zip(input_rules, anywhere, strict=True) if share)
        return dict(zip(names, zip(pairs[::2], pairs[1::2], strict=True), strict=True))


def _whole(rule: InputRule, given: tuple[Any, ...]) -> Tensor | None:
    """The whole samples of a layer's input; None for tokens, whose counts are compared as a whole."""
    if not isinstance(rule, SubspaceRule) or not given[0].is_floating_point():
        return None
    x: Tensor = given[0].detach()
    return whole(rule.layer.module, x, rule.real[0])


def _rows(rule: InputRule) -> str:
    return f"the input of {rule.name}"


def _samples(rule: InputRule) -> str:
    return f"whole samples of the input of {rule.name}"
