"""A hold that can be taken back: what was seen is held from the first suspicious batch on, before it is certain."""

from typing import Any

from sal_lightning.coverage import Coverage
from sal_lightning.logit_adjustment import LogitAdjustment
from sal_lightning.pull import Pull
from sal_lightning.rules.base import Rule, State


class Provisional:
    """Knows what was held before a change was suspected."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.before: dict[Rule | Pull | LogitAdjustment, Any] | None = (
            None  # the memory of each; None while nothing is suspected
        )

    def hold(self) -> None:
        """A change is suspected: hold what was seen, once."""
        if self.before is None:
            self.before = {one: one.memory for one in self.coverage.holders()}
            self.coverage.consolidate()

    def dismiss(self) -> None:
        """It was no change: hold again what was held before."""
        for rule, memory in (self.before or {}).items():
            rule.memory = memory
        self.before = None

    def confirm(self) -> None:
        """It was one: what is held stays."""
        self.before = None

    def follow(self) -> None:
        """Rules were replaced, or took in more parameters: take their memories back to those that are there now."""
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> State | None:
        """Each rule's memory by its name."""
        return None if self.before is None else {rule.name: rule.pack(memory) for rule, memory in self.before.items()}

    def load_state_dict(self, state: State | None) -> None:
        """Continue where another stood."""
        rules = {one.name: one for one in self.coverage.holders()}
        known = {} if state is None else {rules[name]: kept for name, kept in state.items() if name in rules}
        self.before = None if state is None else {rule: rule.unpack(kept) for rule, kept in known.items()}
