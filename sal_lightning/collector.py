"""Collects what a training step uses: inputs of layers and the gradient at the output, by hooks on the modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from sal_lightning import torch_compile
from sal_lightning.batch_norm import RunningStatistics
from sal_lightning.change_detection import Batch
from sal_lightning.coverage import Coverage, owned
from sal_lightning.forward_hooks import ForwardHooks
from sal_lightning.output_gradient import OutputGradient
from sal_lightning.precision import full_precision
from sal_lightning.remembering import importance_values
from sal_lightning.rules.base import Rule
from sal_lightning.rules.input_rule import InputRule
from sal_lightning.stability import StabilityAnalyzer
from sal_lightning.step_inputs import StepInputs

STRIDE = 4  # steps between two updates of the analyzer
FOLLOWED = 2  # steps in which the layer that runs last is determined


class Collector:
    """The hooks on one model, and what they collected since the last optimizer step.

    Args:
        coverage: the rules, whose layers are hooked.
        scaler: the loss scaler of 16-bit training.
        keep_statistics: whether running statistics of batch normalization are kept where something is held.
        on_forward: called at each forward pass that counts, before its input is collected.
    """

    def __init__(
        self,
        coverage: Coverage,
        scaler: GradScaler | None,
        keep_statistics: bool,
        on_forward: Callable[[InputRule], None],
    ) -> None:
        self.coverage, self.keep_statistics, self.on_forward = coverage, keep_statistics, on_forward
        self.inputs = StepInputs(coverage)
        self.hooks = ForwardHooks()
        self.output = OutputGradient(scaler, coverage.pull.fisher, coverage.adjustment)
        self.statistics = RunningStatistics()
        self.analyzer: StabilityAnalyzer | None = None  # measures observed stability from gradients before the mask
        self.step = 0  # optimizer steps so far; decides which rows of a batch are sampled
        self.steps = 0  # steps since the layers were hooked, or since parameters were added
        self.had_input_rules = False  # whether any layer has been hooked
        self._new = set[InputRule]()  # rules that were added since the last step

    # --- hooks ---

    def attach(self) -> None:
        """Hook all layers."""
        self.hooks.begin(self._collect, self._collect_later)
        rules = self.coverage.input_rules
        self._new, self.had_input_rules, self.steps = set(rules), bool(rules), 0
        self.output.follow(self.inputs.last)
        torch_compile.renew()
        self._hook_modules()
        for rule in rules:
            self.hooks.add(rule)

    def detach(self) -> None:
        """Remove all hooks."""
        self.hooks.clear()
        self.output.remove()
        self.statistics.end()

    def replace(self, coverage: Coverage, inputs: StepInputs) -> None:
        """Collect for other rules from now on; ``attach`` hooks their layers."""
        self.coverage, self.inputs = coverage, inputs
        self.output.fisher, self.output.adjustment = coverage.pull.fisher, coverage.adjustment

    def cover_new(self) -> bool:
        """Cover and hook parameters that are new or replaced; returns whether there were any."""
        new = self.coverage.grow()
        if new is None:
            return False
        self.steps = 0
        for rule in self.coverage.gone:
            self.hooks.remove(rule)
        self.inputs.remove(self.coverage.gone)
        self.coverage.accept_replaced_weights()
        if self.analyzer is not None:
            self.analyzer.watch(owned(self.coverage.model, self.coverage.optimizer))
        if new:
            torch_compile.renew()
            self._hook_modules()
            self._new.update(new)
        for rule in new:
            self.hooks.add(rule)
        return True

    def _hook_modules(self) -> None:
        """Hook modules that take padding masks or have running statistics."""
        self.hooks.padding.begin(self.coverage.model)
        if self.keep_statistics:
            self.statistics.begin(self.coverage.model)

    # --- forward passes ---

    @property
    def in_step(self) -> bool:
        """Whether forward passes belong to a training step; set by a trainer's callback, True in a plain loop."""
        return self.hooks.in_step

    @in_step.setter
    def in_step(self, running: bool) -> None:
        self.hooks.in_step = self.output.in_step = running

    def _collect(self, rule: InputRule, inputs: tuple[Any, ...]) -> None:
        self.on_forward(rule)
        self.inputs.collect(rule, inputs, self.step)

    def _collect_later(self, rule: InputRule, inputs: tuple[Any, ...]) -> Callable[[], None]:
        confirm = self.inputs.collect_later(rule, inputs, self.step)

        def confirmed() -> None:
            self.on_forward(rule)
            confirm()

        return confirmed

    # --- a step ---

    def signals(self, unit: float) -> dict[str, float]:
        """Count a step; returns how unusual its data are, by the name of the signal.

        Args:
            unit: the factor by which gradients are scaled.
        """
        self.step += 1
        if self.analyzer is not None and self.step % STRIDE == 1:
            self.analyzer.update(unit)
        self.inputs.confirm_deferred()
        found = self.inputs.signals(self.output)
        if self.steps < FOLLOWED and self.output.total is None and self.inputs.last is not self.output.module:
            self.output.follow(self.inputs.last)
            torch_compile.renew()
        return found

    def replace_unreached(self) -> bool:
        """Use the element rule for layers whose weights have gradients but whose module is not called.

        Returns:
            Whether there are any.
        """
        # A new rule's gradient may have been computed before its hooks were added.
        new = set() if self.hooks.always else self._new
        unreached = (r for r in self.coverage.input_rules if r in self.coverage.rules and r not in self.inputs.known)
        lost: list[Rule] = [rule for rule in unreached if not rule.used and rule not in new]
        self._new = set()
        if lost := [rule for rule in lost if any(p.grad is not None for p in rule.parameters.values())]:
            self.coverage.use_element_rule(lost)
        return bool(lost)

    def update(self, unit: float = 1.0, kind: Batch = Batch.FAMILIAR) -> list[Rule]:
        """Update all statistics with this step; returns the rules that collected inputs in it.

        Args:
            unit: the factor by which gradients are scaled.
            kind: how the batch compares with the window. The inputs of the first batch of other data were collected
                before the new windows were started, and only for some layers: they are discarded.
        """
        first = kind is Batch.FIRST_OTHER
        due = [rule for rule in self.coverage.rules if rule.due and rule in self.inputs.known and not first]
        if first:
            self.inputs.discard_rows()
        self.inputs.update(unit, kind)
        self.coverage.pull.fisher.update()
        return due

    def discard_step(self) -> None:
        """Discard what was collected since the last step."""
        self.inputs.discard_step()
        self.output.discard_step()
        self.coverage.pull.fisher.discard_step()
        self.coverage.adjustment.discard_step()
        self.hooks.padding.discard_step()

    def clear(self) -> None:
        """Start new windows."""
        self.inputs.clear()
        self.coverage.clear()

    @property
    def unreached(self) -> list[str]:
        """Names of layers with a subspace or embedding rule that have not run yet; empty before any layer has."""
        known = self.inputs.known
        rules = self.coverage.rules
        return [r.name for r in self.coverage.input_rules if r in rules and r not in known] if known else []

    # --- data to remember ---

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Context in which every forward pass counts, and predictions count as targets."""
        self.hooks.always = self.output.predicts = True
        try:
            yield
        finally:
            self.hooks.always = self.output.predicts = False

    def collect_batch(self, batch: Any, forward: Callable[[Any], Any]) -> None:
        """Run the model on a batch to remember, and update all statistics with it."""
        self.coverage.model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            fisher = self.coverage.pull.fisher
            each = importance_values(self.coverage.model, forward(batch), self.hooks.padding, fisher.age)
            fisher.collect_importance(each)
            torch.autograd.backward(each.mean())
        self.replace_unreached()
        with full_precision(self.coverage.device):
            self.update()
            self.coverage.adjustment.update()
            self.discard_step()


def has_gradients(coverage: Coverage) -> bool:
    """Whether any parameter of the optimizer has a gradient, or without an optimizer any covered parameter."""
    optimizer = coverage.optimizer
    if optimizer is None:
        return any(p.grad is not None for rule in coverage.rules for p in rule.parameters.values())
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
