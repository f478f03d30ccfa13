"""Checks of a communication layer: each warns once if less is protected than a user would expect."""

from torch import Tensor

from sal_lightning.adapters import others as other_adapters
from sal_lightning.collector import Collector
from sal_lightning.coverage import Coverage, learns
from sal_lightning.optimizer_hooks import OptimizerHooks, UnobservedSteps
from sal_lightning.settings import Protection
from sal_lightning.user_warnings import UserWarnings

SECOND = 2  # step by which every layer should have been called


class SelfChecks:
    """Runs the checks of one communication layer and gives their warnings."""

    def __init__(self, warnings: UserWarnings, protection: Protection) -> None:
        self.warnings, self.protection = warnings, protection
        self.unobserved = UnobservedSteps()

    def own_forward(self, coverage: Coverage) -> None:
        """Warn if layers have a custom forward pass."""
        if coverage.other:
            self.warnings.own_forward(coverage.other)

    def adapters(self, coverage: Coverage) -> None:
        """Warn if adapters of other kinds than LoRA are trained."""
        if self.protection == "subspace" and (kinds := other_adapters(coverage.model)):
            self.warnings.other_adapters(kinds)

    def step(self, collector: Collector) -> None:
        """Warn of custom forward passes; at step SECOND, also if no layer ran or most weights use the element rule."""
        coverage = collector.coverage
        self.own_forward(coverage)
        if collector.steps != SECOND or self.protection == "tensor":
            return
        if collector.had_input_rules and not collector.inputs.known:
            self.warnings.unreached()
        elif self.protection == "subspace":
            single = {n: p for rule in coverage.rules if rule.grain == "element" for n, p in rule.parameters.items()}
            sizes = {n: p.numel() for n, p in single.items() if learns(p)}
            # Of all trainable weights: an optimizer may own the biases only.
            total = sum(p.numel() for p in coverage.model.parameters() if learns(p))
            if sum(sizes.values()) > total / 2:
                self.warnings.elements(sum(sizes.values()) / total, sizes)

    def pull(self, collector: Collector) -> None:
        """Warn if the importance of weights could not be measured."""
        if cause := collector.coverage.pull.problem:
            self.warnings.no_pull(cause)

    def remembered(self, collector: Collector) -> None:
        """Warn if no layer ran in ``remember()``, which may itself have moved weights."""
        self.unobserved = UnobservedSteps()
        if collector.had_input_rules and not collector.inputs.known and self.protection == "subspace":
            self.warnings.not_remembered()

    def forward_pass(self, collector: Collector, hooks: OptimizerHooks | None, skips: int) -> None:
        """Count a forward pass; at intervals, check whether the weights change without an observed step."""
        if _none_observed(collector, hooks, skips) and self.unobserved.due(_sample_weight(collector)):
            self.steps_observed(collector, hooks, skips)

    def steps_observed(self, collector: Collector, hooks: OptimizerHooks | None, skips: int) -> None:
        """Warn if the weights have changed and no step of the optimizer was observed."""
        if _none_observed(collector, hooks, skips) and self.unobserved.moved(_sample_weight(collector)):
            optimizer = type(collector.coverage.optimizer).__name__
            self.warnings.no_step(optimizer, self.unobserved.passes)


def _none_observed(collector: Collector, hooks: OptimizerHooks | None, skips: int) -> bool:
    return hooks is not None and not hooks.steps and not skips and bool(collector.coverage.rules)


def _sample_weight(collector: Collector) -> Tensor:
    """The local values of a trainable parameter, or of any parameter if none is trainable."""
    rules = collector.coverage.rules
    return next((rule for rule in rules if rule.learns), rules[0]).weights()[0]
