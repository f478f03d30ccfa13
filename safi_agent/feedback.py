"""Feedback of past audits to the next Intellect call: a trend and at most one value's name, no numbers."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from safi_agent.values import ValueSet

KEPT = 8
RECENT = 3
WEAK = 0.25  # a lower mean score is mentioned
STEP = 0.5  # the change of the mean Spirit score that counts as a trend


def trend(scores: Sequence[int]) -> str:
    """``rising``, ``falling`` or ``steady``: the last three Spirit scores against those before them.

    >>> trend([9, 9, 9, 4, 4, 3])
    'falling'
    """
    if len(scores) <= RECENT:
        return "steady"
    change = fmean(scores[-RECENT:]) - fmean(scores[:-RECENT])
    return "rising" if change >= STEP else "falling" if change <= -STEP else "steady"


def feedback_note(values: ValueSet, mu: Mapping[str, float], mu_turn: int, scores: Sequence[int], beta: float) -> str:
    """The note; empty before the first audit, and if scores are neither low nor falling. Hard gates are never named."""
    if not mu_turn:
        return ""
    grown = 1 - beta**mu_turn  # bias correction: the sum of the weights in μ so far
    means = [(mu[v.key] / v.weight / grown, v.name) for v in values.scored if v.key in mu]
    weakest = min(means, default=(1.0, ""))
    going = trend(scores)
    if weakest[0] >= WEAK:
        return "" if going != "falling" else "Recent answers keep less well to the values than earlier ones did."
    tendency = {"rising": "are getting better", "falling": "are getting worse", "steady": "are steady"}[going]
    return f"Recent answers {tendency}. Give more thought to this value: {weakest[1]}."
