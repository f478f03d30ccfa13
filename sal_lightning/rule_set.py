"""All rules of one model and optimizer, applied together."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sal_lightning.dora import Magnitudes
from sal_lightning.logit_adjustment import LogitAdjustment
from sal_lightning.pull import Pull
from sal_lightning.rules.base import Rule
from sal_lightning.rules.input_rule import InputRule
from sal_lightning.rules.subspace import update_pace


class RuleSet:
    """The rules, the pull and the logit adjustment of one model."""

    def __init__(self, model: nn.Module, pull: Pull, adjustment: LogitAdjustment) -> None:
        self.model, self.pull, self.adjustment = model, pull, adjustment
        self.rules: list[Rule] = []
        self.input_rules: list[InputRule] = []  # rules that collect inputs in forward passes
        self.magnitudes = Magnitudes()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def all_rules(self) -> set[Rule]:
        """Rules that protect, and input rules that only collect."""
        return {*self.rules, *self.input_rules}

    def holders(self) -> list[Rule | Pull | LogitAdjustment]:
        """All objects with a memory: the rules that protect, the pull and the logit adjustment."""
        return [*self.rules, self.pull, self.adjustment]

    def consolidate(self) -> None:
        """Consolidate all rules, the logit adjustment and the pull."""
        for rule in self.rules:
            rule.consolidate()
        self.adjustment.consolidate()
        targets = self.adjustment.memory or {}
        self.pull.consolidate(
            {n: targets[rule.name] for rule in self.input_rules if rule.name in targets for n in rule.parameters}
        )

    def clear(self) -> None:
        """Start new windows."""
        for rule in self.all_rules():
            rule.clear()
        self.pull.clear()
        self.adjustment.clear()

    # --- one step ---

    def accept_changed_weights(self) -> None:
        """Accept weights that something else has changed since the last step."""
        for rule in self.rules:
            if rule.detect_external_change():
                self.pull.set_anchor(rule.parameters)

    def snapshot(self) -> None:
        """Keep the weights for the length of one optimizer step."""
        for rule in self.rules:
            rule.snapshot()
        self.pull.begin_step()
        self.magnitudes.begin_step(self.rules)

    def forget_weights(self) -> None:
        """Drop the weights that ``snapshot`` kept."""
        for rule in self.rules:
            rule.before = None

    def restore(self, measure: bool) -> Tensor | None:
        """Undo the held part of the step, then apply the pull; returns (held², whole²) if asked to measure."""
        restored = [rule for rule in self.rules if rule.before is not None]
        if restored:  # not in a step that the scaler skipped
            self.pull.measure(restored)
        touched = {n: rule.touched for rule in restored for n in rule.parameters if rule.touched is not None}
        settling = {n for rule in restored if rule.settles for n in rule.parameters}
        measured = [rule.restore(measure) for rule in self.rules]
        if restored:
            self.pull.apply(touched)
            self.magnitudes.end_step(self.pull)
        for name in settling & touched.keys():
            self.pull.set_anchor([name], touched[name])
        for rule in restored:
            rule.record_weights()
        update_pace(self.rules)
        return self.total(measured) if measure else None

    def settle(self) -> None:
        """Complete the rules' ``restore``, which undoes some movement only every few steps."""
        self.magnitudes.begin_step(self.rules)
        for rule in self.rules:
            if rule.holds:
                if rule.detect_external_change():
                    self.pull.set_anchor(rule.parameters)
                touched = rule.touched
                rule.settle()
                if touched is not None:
                    self.pull.set_anchor(rule.parameters, touched)
        self.magnitudes.end_step(self.pull)

    # --- measurements ---

    def total(self, parts: Iterable[Tensor | None]) -> Tensor:
        """The sum of all parts that are not None, (2,)."""
        known = [part for part in parts if part is not None]
        return torch.stack(known).sum(0) if known else torch.zeros(2, device=self.device)

    def bands(self) -> Tensor:
        """Counts of trainable weights that are (protected, neutral, volatile): (3,)."""
        parts = [rule.bands().to(self.device) for rule in self.rules if rule.learns]
        return torch.stack(parts).sum(0) if parts else torch.zeros(3, device=self.device)

    def drift(self) -> Tensor:
        """Energy-weighted movement along held directions since they were consolidated, as (moved², size²): (2,)."""
        return self.total(rule.drift() for rule in self.rules)

    def memory(self) -> dict[str, float]:
        """Bytes: ``model`` (covered), ``state`` (kept), ``step`` (more in a step); ``ratio`` = state / model."""
        covered = {id(p): p for rule in self.rules for p in rule.parameters.values()}  # a tied weight counts once
        model = sum(p.nbytes for p in covered.values())
        kept = [t for rule in self.all_rules() for t in rule.tensors()]
        kept += self.pull.tensors() + self.adjustment.tensors()
        state = sum(t.nbytes for t in kept)
        held = {id(p): p for rule in self.rules if rule.holds and rule.restores for p in rule.parameters.values()}
        step = sum(p.nbytes for p in held.values()) + self.pull.working
        return {"model": model, "state": state, "step": step, "ratio": state / max(model, 1)}

    def grains(self) -> dict[str, str]:
        """The grain at which each covered parameter is protected."""
        return {name: rule.grain for rule in self.rules for name in rule.parameters}
