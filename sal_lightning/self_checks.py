"""Checks of the communication layer on itself: each gives one warning where less is protected than its user thinks."""

from torch import Tensor

from sal_lightning.collector import Collector
from sal_lightning.coverage import Coverage, learns
from sal_lightning.optimizer_hooks import OptimizerHooks, UnobservedSteps
from sal_lightning.settings import Protection
from sal_lightning.user_warnings import UserWarnings

SECOND = 2  # the step of a training after which every layer has been called


class SelfChecks:
    """Gives the warnings of one communication layer."""

    def __init__(self, warnings: UserWarnings, protection: Protection) -> None:
        self.warnings, self.protection = warnings, protection
        self.unobserved = UnobservedSteps()

    def own_forward(self, coverage: Coverage) -> None:
        """Have layers a forward pass of their own?"""
        if coverage.other:
            self.warnings.own_forward(coverage.other)

    def step(self, collector: Collector) -> None:
        """Have layers a forward pass of their own? In the second step: was any reached, are most held by directions?"""
        coverage = collector.coverage
        self.own_forward(coverage)
        if collector.steps != SECOND or self.protection == "tensor":
            return
        if collector.had_input_rules and not collector.inputs.known:
            self.warnings.unreached()
        elif self.protection == "subspace":
            single = {n: p for rule in coverage.rules if rule.grain == "element" for n, p in rule.parameters.items()}
            sizes = {n: p.numel() for n, p in single.items() if learns(p)}
            # Of all that is trained: biases alone may have an optimizer of their own.
            total = sum(p.numel() for p in coverage.model.parameters() if learns(p))
            if sum(sizes.values()) > total / 2:
                self.warnings.elements(sum(sizes.values()) / total, sizes)

    def pull(self, collector: Collector) -> None:
        """Could the importance of weights be measured?"""
        if cause := collector.coverage.pull.problem:
            self.warnings.no_pull(cause)

    def remembered(self, collector: Collector) -> None:
        """After ``remember``: was any layer reached?"""
        if collector.had_input_rules and not collector.inputs.known and self.protection == "subspace":
            self.warnings.not_remembered()

    def forward_pass(self, collector: Collector, hooks: OptimizerHooks | None, skips: int) -> None:
        """In a forward pass: count it, and check now and then whether the weights move without a step."""
        if _none_observed(collector, hooks, skips) and self.unobserved.due(_some_weight(collector)):
            self.steps_observed(collector, hooks, skips)

    def steps_observed(self, collector: Collector, hooks: OptimizerHooks | None, skips: int) -> None:
        """Have the weights moved, and no step of the optimizer was observed?"""
        if _none_observed(collector, hooks, skips) and self.unobserved.moved(_some_weight(collector)):
            optimizer = type(collector.coverage.optimizer).__name__
            self.warnings.no_step(optimizer, self.unobserved.passes)


def _none_observed(collector: Collector, hooks: OptimizerHooks | None, skips: int) -> bool:
    return hooks is not None and not hooks.steps and not skips and bool(collector.coverage.rules)


def _some_weight(collector: Collector) -> Tensor:
    """Values of a parameter that is trained, if there is one."""
    rules = collector.coverage.rules
    return next((rule for rule in rules if rule.learns), rules[0]).weights()[0]
