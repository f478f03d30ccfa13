"""Reasons of consolidations: a change that was detected, or a request."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

LOSS = "the loss"  # the loss jumped
BY_HAND = "by hand"
REMEMBERED = "remembered"
EVERY_STEPS = "every n steps"
NEW_FIT = "new fit"
ASKED = (BY_HAND, REMEMBERED, EVERY_STEPS, NEW_FIT)  # any other reason is the signal in which a change was detected
_BETWEEN = "; "


class Counts(NamedTuple):
    """Numbers of consolidations: after a detected change, on request, and for an unknown reason."""

    found: int = 0
    asked: int = 0
    unknown: int = 0


def with_evidence(before: str, new: str) -> str:
    """Adds a reason to the reasons of a step, without duplicates.

    >>> with_evidence("", "the loss"), with_evidence("the loss", "by hand"), with_evidence("by hand", "by hand")
    ('the loss', 'the loss; by hand', 'by hand')
    """
    reasons = before.split(_BETWEEN) if before else []
    return _BETWEEN.join(dict.fromkeys([*reasons, new]))


def count(events: Sequence[int], evidence: Mapping[int, str]) -> Counts:
    """Count consolidations by reason; the same reason twice at one step counts once.

    Args:
        events: the steps at which something was consolidated.
        evidence: the reasons, by step.

    >>> count([3, 90, 90, 120], {3: "the loss", 90: "the loss; by hand"})
    Counts(found=2, asked=1, unknown=1)
    """
    known = [step for step in dict.fromkeys(events) if step in evidence]
    reasons = [reason for step in known for reason in evidence[step].split(_BETWEEN)]
    asked = sum(reason in ASKED for reason in reasons)
    return Counts(len(reasons) - asked, asked, sum(step not in evidence for step in events))
