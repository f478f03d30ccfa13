"""Whether a log is as it was written, in one sentence for the report."""

from typing import Literal, NamedTuple

from safi_agent.log.reconciliation import Checked
from safi_agent.unicode_text import many

State = Literal["whole", "changed", "unchecked"]
TITLES: dict[State, str] = {"whole": "Sealed", "changed": "Changed", "unchecked": "Not verified"}


class Seal(NamedTuple):
    """The result of a verification, and its sentence."""

    state: State
    text: str


def seal(checked: Checked, *, with_store: bool) -> Seal:
    """The seal of a log that was verified, with the store that wrote it or by its own MACs alone."""
    verdict = checked.verdict
    if verdict.faulty:
        found = f"{many(verdict.faulty, 'fault')} in {many(verdict.lines, 'line')}"
        first = f" The first: {verdict.faults[0]}." if verdict.faults else ""
        return Seal("changed", f"The log is not as it was written: {found}.{first}")
    if with_store:
        return Seal("whole", f"{many(verdict.lines, 'line')}, as they were written, compared with the store.")
    return Seal(
        "whole",
        f"{many(verdict.lines, 'line')}, each with its MAC. The log was not compared with a store: lines that are "
        "missing at the end cannot be detected.",
    )
