"""Policy hooks: alerts for low scores, high drift, failed audits and a local judge that disagrees with its model."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from safi_agent import defaults
from safi_agent.values import ValueSet, label

log = logging.getLogger("safi_agent")
MOST = 3
UNFOUNDED = ("all_omitted", "no_confidence")  # flags of a score without a basis
Raised = Literal["review", "drift", "audit_failed", "judge_drift"]
Kind = Literal["turn"] | Raised


class Alert(NamedTuple):
    """The argument of a hook; ``offenders`` names at most three values, the worst first.

    The kind "turn" is raised once for every turn; only hooks with ``every_turn = True`` are called with it.
    """

    kind: Kind  #: "review", "drift", "audit_failed", "judge_drift" or "turn"
    turn_id: str  #: as in the record and in the answer's ``response_metadata["safi"]``
    offenders: tuple[str, ...]  #: names of values
    record: Mapping[str, Any]  #: the turn's line of the log


Hook = Callable[[Alert], object | Awaitable[object]]


def alert_kinds(
    record: Mapping[str, Any],
    review_below: float,
    drift_above: float,
    judge_drift_above: float = defaults.JUDGE_DRIFT_ABOVE,
) -> list[Raised]:
    """The alerts that an audited record raises: ``S < τ_S``, ``d > τ_d``, no audit. None never triggers a threshold.

    A score without a basis, according to the record's flags, raises "review" too. "judge_drift" is raised where the
    running disagreement of the local judge with the language model is above its threshold.
    """
    score, drift = record["spiritScore"], record["drift"]
    kinds: list[Raised] = []
    if record["auditStatus"] == "failed":
        kinds.append("audit_failed")
    low = score is not None and score < review_below
    if record["auditStatus"] == "failed" or low or is_unfounded(record):
        kinds.append("review")
    if drift is not None and drift > drift_above:
        kinds.append("drift")
    local = record.get("localJudge")
    disagreement = local.get("disagreement") if isinstance(local, Mapping) else None
    if isinstance(disagreement, int | float) and disagreement > judge_drift_above:
        kinds.append("judge_drift")
    return kinds


def is_unfounded(record: Mapping[str, Any]) -> bool:
    """Whether a record is flagged as having a score without a basis."""
    return any(flag in UNFOUNDED for flag in record.get("flags", ()))


def is_called_for(hook: Hook, kind: Kind) -> bool:
    """Whether a hook is to be called for this kind."""
    try:
        return kind != "turn" or getattr(hook, "every_turn", False) is True
    except BaseException:
        return False


def offenders(ledger: Sequence[Mapping[str, Any]], values: ValueSet) -> tuple[str, ...]:
    """Values that were broken, by weight · score · confidence (hard gates first), then those left out, by weight."""
    weights = {value.key: value.weight for value in values.values}
    rows = [(row, weights[label(row["value"])]) for row in ledger if label(row["value"]) in weights]
    broken = [(w > 0, w * row["score"] * row["confidence"], row["value"]) for row, w in rows if row["score"] < 0]
    left_out = [(-w, row["value"]) for row, w in rows if row["score"] == 0 and w > 0]
    return tuple([name for *_, name in sorted(broken)] + [name for _, name in sorted(left_out)])[:MOST]


def callable_name(thing: object) -> str:
    """The name of a hook, φ or σ for messages and the log. Never raises."""
    try:
        name = getattr(thing, "__name__", None)
        return name if isinstance(name, str) else repr(thing)
    except BaseException:
        return type(thing).__name__


def call_hook(hook: Hook, alert: Alert) -> Coroutine[Any, Any, None] | None:
    """Call a hook; returns a coroutine to await if the hook returns an awaitable.

    One that fails is logged and harms nothing. Whatever it raises ends here, ``SystemExit`` and ``KeyboardInterrupt``
    too: they were not raised in the main thread.
    """
    try:
        result = hook(alert)
        return _rest(hook, alert, result) if inspect.isawaitable(result) else None
    except BaseException as error:
        _failed(hook, alert, error)
        return None


async def _rest(hook: Hook, alert: Alert, result: Awaitable[object]) -> None:
    try:
        await result
    except BaseException as error:
        _failed(hook, alert, error)


def _failed(hook: Hook, alert: Alert, error: BaseException) -> None:
    log.error("The hook %s failed on turn %s.", callable_name(hook), alert.turn_id, exc_info=error)
