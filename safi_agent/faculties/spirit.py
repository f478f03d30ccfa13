"""Spirit: the coherence of an answer with the values, and its drift from the long-term profile. Pure functions.

``S = σ(Σ wᵢ sᵢ φ(cᵢ))``, ``p = w ⊙ s``, ``μ ← βμ + (1−β)p``, ``d = 1 − cos(p, μ_prev)``, where ``d`` is over the values
that were scored both now and before: a missing row does not count as a score of 0.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from safi_agent import defaults
from safi_agent.ledger import Finding, Ledger, read_ledger
from safi_agent.values import ValueSet

Map = Callable[[float], float]


class Assessment(NamedTuple):
    """The result of one audit; ``score`` is None if the ledger covers too few values, and μ is then unchanged."""

    score: int | None  #: S in 1..10
    profile: dict[str, float]  #: p = w ⊙ s by normalised name, each in [-w, w]
    mu: dict[str, float]  #: μ after this audit, by normalised name
    drift: float | None  #: d in [0, 1]; None where p or μ is zero over the values that were scored now and before
    drift_raw: float | None  #: the same before it was clamped, in [0, 2]
    unscored: tuple[str, ...]  #: names of values without a usable row


def identity(confidence: float) -> float:
    """The default φ: confidence as the judge gave it."""
    return confidence


def linear(raw: float) -> float:
    """The default σ: [−1, 1] to [1, 10], clipped; rounding (half to even) follows.

    >>> linear(0.0), round(linear(0.0))
    (5.5, 6)
    """
    return (min(1.0, max(-1.0, raw)) + 1) / 2 * 9 + 1


def assess(
    ledger: Iterable[Finding | Mapping[str, Any]],
    values: ValueSet,
    mu: Mapping[str, float] | None = None,
    beta: float = defaults.BETA,
    *,
    phi: Map = identity,
    sigma: Map = linear,
) -> Assessment:
    """Score a ledger against the values and the long-term profile ``mu`` (None: there is none yet).

    ``profile`` and ``mu`` are keyed by normalised name. A value without a usable row adds 0 to the score, keeps its μ
    and is left out of the drift: the cosine is over the weighted values that have a usable row in this ledger and a μ
    from an earlier one. A value that is missing in one ledger causes no drift, neither in that turn nor in the next.

    Args:
        ledger: a Finding, or a mapping of its fields, for each value; invalid rows are treated as absent.
        values: the weights w.
        mu: μ before this audit.
        beta: the decay of μ, in [0, 1).
        phi: maps a confidence in [0, 1] to its weight, a finite number; the identity by default.
        sigma: maps the weighted sum in [-1, 1] to the score before it is rounded to a whole number in 1..10; by default
            to [1, 10], linearly.

    Raises:
        ValueError: ``beta`` is not in [0, 1), ``phi`` or ``sigma`` returns a number that is not finite, or the rounded
            result of ``sigma`` is not in 1..10.
    """
    if is_invalid_beta(beta):
        raise ValueError(f"beta: expected a number in [0, 1), got {beta!r}.")
    before = dict(mu or {})
    read = read_ledger(ledger, values)
    if not read.covered:
        return Assessment(None, {}, before, None, None, read.unscored)
    rows = [(value.key, value.weight, read.findings.get(value.key)) for value in values.scored]
    profile = {key: w * row.score if row else 0.0 for key, w, row in rows}
    moved = {key: beta * before.get(key, 0.0) + (1 - beta) * profile[key] for key, _, row in rows if row}
    shared = [key for key, _, row in rows if row and key in before]
    drift_raw = _distance([profile[key] for key in shared], [before[key] for key in shared])
    drift = None if drift_raw is None else min(1.0, max(0.0, drift_raw))
    score = _score([(w * row.score, row.confidence) for _, w, row in rows if row], phi, sigma)
    return Assessment(score, profile, before | moved, drift, drift_raw, read.unscored)


def _score(rows: Iterable[tuple[float, float]], phi: Map, sigma: Map) -> int:
    """S of weighted scores and their confidences."""
    raw = math.fsum(weighted * _finite("phi", phi(confidence)) for weighted, confidence in rows)
    score = round(_finite("sigma", sigma(raw)))  # half to even
    if not 1 <= score <= 10:
        raise ValueError(f"sigma: expected a function whose result rounds to 1..10, got {score}.")
    return score


def _finite(name: str, result: object) -> float:
    if isinstance(result, bool) or not isinstance(result, Real) or not math.isfinite(result):
        raise ValueError(f"{name}: expected a function with finite results, got {result!r}.")
    return float(result)


def is_invalid_beta(beta: object) -> bool:
    """Whether β is anything but a number in [0, 1): at 1 the profile would never move."""
    return isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < 1


def _distance(p: Sequence[float], q: Sequence[float]) -> float | None:
    """1 − cos; None where either is zero."""
    p_norm, q_norm = math.hypot(*p), math.hypot(*q)
    if p_norm == 0 or q_norm == 0:
        return None
    return 1 - math.fsum((a / p_norm) * (b / q_norm) for a, b in zip(p, q, strict=True))


def reflection(assessment: Assessment, ledger: Ledger) -> str:
    """The assessment in words."""
    if assessment.score is None:
        return "Not enough values could be scored; no score is given."
    sides: dict[str, list[str]] = {"Affirms": [], "Breaks": [], "Leaves out": []}
    for row in ledger.findings.values():
        sides["Affirms" if row.score > 0 else "Breaks" if row.score < 0 else "Leaves out"].append(row.value)
    parts = [f"{side}: {', '.join(names)}." for side, names in sides.items() if names]
    if ledger.unscored:
        parts.append(f"Unscored: {', '.join(ledger.unscored)}.")
    drift = "no baseline yet" if assessment.drift is None else f"drift {assessment.drift:.2f}"
    return " ".join([*parts, f"Coherence {assessment.score} of 10, {drift}."])
