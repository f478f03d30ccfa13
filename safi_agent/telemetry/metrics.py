"""Metrics of turns and audits: decisions, durations, results."""

from opentelemetry import metrics
from opentelemetry.metrics import Meter

from safi_agent.telemetry import SCOPE
from safi_agent.telemetry.attributes import AUDIT_STATUS, DECISION, ERROR_TYPE, RULE, VALUE_SET

# Of the semantic conventions for the duration of an operation, and three more: audits may take minutes.
BOUNDARIES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84)
NO_DECISION = "none"


class Instruments:
    """The instruments of a meter."""

    def __init__(self, meter: Meter) -> None:
        self.decisions = meter.create_counter("safi.decisions", "{turn}", "New turns, by the Will's decision.")
        self.turns = meter.create_histogram(
            "safi.turn.duration",
            "s",
            "Duration of a turn until its answer is returned.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self.attempts = meter.create_histogram(
            "safi.audit.duration",
            "s",
            "Duration of an attempt of an audit.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self.audits = meter.create_counter("safi.audits", "{audit}", "Finished audits, by status.")


instruments = Instruments(metrics.get_meter(SCOPE))


def record_decision(value_set: str, decision: str | None, rule: str) -> None:
    """Count a new turn; ``decision`` is None for a turn without a draft."""
    instruments.decisions.add(1, {VALUE_SET: value_set, DECISION: decision or NO_DECISION, RULE: rule})


def record_turn(seconds: float, value_set: str, decision: str, error: str) -> None:
    """Record the duration of a turn."""
    instruments.turns.record(seconds, _labels(value_set, {DECISION: decision or NO_DECISION}, error))


def record_attempt(seconds: float, value_set: str, error: str) -> None:
    """Record the duration of an attempt of an audit."""
    instruments.attempts.record(seconds, _labels(value_set, {}, error))


def record_audit(value_set: str, status: str) -> None:
    """Count a finished audit."""
    instruments.audits.add(1, {VALUE_SET: value_set, AUDIT_STATUS: status})


def _labels(value_set: str, more: dict[str, str], error: str) -> dict[str, str]:
    return {VALUE_SET: value_set, **more, **({ERROR_TYPE: error} if error else {})}
