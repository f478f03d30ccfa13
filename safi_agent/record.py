"""The log record of a turn, computed from its row in the store."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from numbers import Real
from typing import Any

from safi_agent import defaults
from safi_agent.contents import new_salt
from safi_agent.faculties.spirit import Assessment, Map, assess, identity, linear, reflection
from safi_agent.feedback import KEPT, feedback_note
from safi_agent.hooks import Raised, alert_kinds, callable_name
from safi_agent.ledger import ContinuousFinding, read_ledger
from safi_agent.offline_model import LABEL
from safi_agent.store import Commit, JudgedTurn, Memory
from safi_agent.turn import Draft, Turn, Verdict
from safi_agent.values import ValueSet, label

LOCAL_JUDGE = "localJudge"  # key of a record, and of the last row of a stored ledger, if a local judge took part
LEAST_CONFIDENCE = 0.01  # mean confidence; below it a score has no basis

log = logging.getLogger("safi_agent")


@dataclass(frozen=True)
class Measure:
    """The Spirit's settings and the thresholds of the hooks."""

    beta: float = defaults.BETA
    review_below: float = defaults.REVIEW_BELOW
    drift_above: float = defaults.DRIFT_ABOVE
    phi: Map = identity
    sigma: Map = linear
    judge_drift_above: float = defaults.JUDGE_DRIFT_ABOVE

    def alert_kinds(self, record: Mapping[str, Any]) -> list[Raised]:
        """The alerts that a record raises."""
        return alert_kinds(record, self.review_below, self.drift_above, self.judge_drift_above)

    def parameters(self, values: ValueSet) -> dict[str, Any]:
        """The parameters that are needed to recompute an audit from its ledger."""
        return {
            "values": values.fingerprint,
            "beta": self.beta,
            "phi": _name_of(self.phi, identity),
            "sigma": _name_of(self.sigma, linear),
        }


def _name_of(used: Map, default: Map) -> str:
    """The name of a map; another function with the name of the default is not taken for it when a log is replayed."""
    name = callable_name(used)
    return f"{getattr(used, '__module__', None)}.{name}" if name == default.__name__ and used is not default else name


def utc_now() -> str:
    """The current time in UTC, in the format of the log."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def turn_body(turn: Turn, value_set: str, models: Mapping[str, str], final: str | None) -> dict[str, Any]:
    """The persistent part of a turn, as plain JSON."""
    draft, verdict = turn.get("draft", Draft("")), turn.get("verdict")
    answered = {"intellect": draft.model, "will": verdict.model if verdict else ""}
    models = {faculty: answered.get(faculty) or name for faculty, name in models.items()}
    not_shown = list(turn.get("not_shown", ()))
    flags = [*((LABEL,) if LABEL in models.values() else ()), *draft.flags, *(("not_shown",) if not_shown else ())]
    if verdict is None:
        flags.append("intellect_failed")
    elif verdict.code != "judge":
        flags.append(verdict.code)
    return {
        "id": turn["id"],
        "key": turn["key"],
        "valueSet": value_set,
        "time": turn["time"],
        "prompt": turn["prompt"],
        "context": turn["context"],
        "metadata": dict(turn["metadata"]),
        "draft": draft.answer,
        "reflection": draft.reflection,
        "decision": verdict and verdict.decision,
        "reason": verdict and verdict.reason,
        "final": final,
        "models": models,
        "flags": list(dict.fromkeys(flags)),
        "drafts": draft.drafts,
        "agreement": draft.agreement,
        "notShown": not_shown,
        "asked": turn.get("asked", ""),
        "salt": new_salt(),
    }


def turn_from_body(body: Mapping[str, Any]) -> Turn:
    """The turn as the Conscience needs it."""
    return {
        "id": body["id"],
        "key": body["key"],
        "prompt": body["prompt"],
        "context": body["context"],
        "draft": Draft(body["final"], body["reflection"]),
        "verdict": Verdict(body["decision"], body["reason"]),
    }


@lru_cache(maxsize=64)
def parse_value_set(text: str | None) -> ValueSet:
    """Parse a value set from the store.

    Raises:
        ValueError: it is missing or cannot be parsed.
    """
    if text is None:
        raise ValueError("values: expected a value set in the store, got none.")
    return ValueSet.model_validate_json(text)


def make_commit(row: JudgedTurn, before: Memory, measure: Measure) -> Commit:
    """The record of a judged turn and the memory after it. A pure function.

    If φ, σ or another part of the computation fails, the record is that of a failed audit: without score and ledger,
    and with an unchanged memory.
    """
    if row.ledger is None:
        return _salted(row, _failed(row, before, measure, row.error))
    try:
        return _salted(row, _audited(row, row.ledger, before, measure))
    except BaseException as error:
        log.error("The audit of turn %s could not be computed.", row.id, exc_info=error)
        cause = error.text if isinstance(error, _MapError) else type(error).__name__
    return _salted(row, _failed(row, before, measure, cause))


def _salted(row: JudgedTurn, commit: Commit) -> Commit:
    """The commit with a record that ends as ``safi_agent.contents`` describes.

    A turn that was erased before it was audited has nothing that ``erased`` could be the hash of.
    """
    metadata = {"metadata": row.body["metadata"]} if row.body["metadata"] else {}
    end = {"erased": None} if "erased" in row.body else {"salt": row.body["salt"]}
    return commit._replace(record={**commit.record, **metadata, **end})


def _audited(row: JudgedTurn, ledger: list[dict[str, Any]], before: Memory, measure: Measure) -> Commit:
    values = parse_value_set(row.values)
    ledger, local = split_ledger(ledger)
    findings = [ContinuousFinding.model_validate(item) for item in ledger]
    phi = measure.phi if measure.phi is identity else _checked("φ", measure.phi)
    sigma = measure.sigma if measure.sigma is linear else _checked("σ", measure.sigma)
    assessment = assess(findings, values, before.mu, measure.beta, phi=phi, sigma=sigma)
    after = _next_memory(before, assessment)
    record = {
        **_base_record(row),
        "measure": measure.parameters(values),
        **_assessed(assessment, findings, values),
        **_memory(after),
        **({} if local is None else {LOCAL_JUDGE: local}),
    }
    unsure = ["judge_unsure"] if local is not None and has_unscored(local) else []
    record["flags"] = [*record["flags"], *unsure, *unfounded(assessment, findings)]
    note = feedback_note(values, after.mu, after.mu_turn, after.scores, measure.beta)
    return Commit(_flagged(record, measure), after, note)


def _failed(row: JudgedTurn, before: Memory, measure: Measure, cause: str | None) -> Commit:
    """The record of a turn without a ledger: it was not to be audited, or its audit failed."""
    try:
        parameters = {"measure": measure.parameters(parse_value_set(row.values))}
    except Exception:
        parameters = {}  # the stored value set is unreadable, which is why the audit failed
    failed = {"auditStatus": "failed", "spiritReflection": f"The audit failed ({cause})."} if cause else {}
    return Commit(_flagged({**_base_record(row), **parameters, **failed, **_memory(before)}, measure), None)


class _MapError(Exception):
    """φ or σ failed; ``text`` has its name and the class of the error or value."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def _checked(name: str, mapped: Map) -> Map:
    """Wrap φ or σ with a check that it returns a finite number.

    Raises:
        _MapError: the map raised, or returned anything else.
    """

    def checked(value: float) -> float:
        try:
            result: Any = mapped(value)
            number = float(result) if isinstance(result, Real) else None
        except BaseException as error:
            raise _MapError(f"{name}: {type(error).__name__}") from error
        if number is None or not math.isfinite(number):
            got = type(result).__name__ if number is None else number
            raise _MapError(f"{name}: expected a finite number, got {got}")
        return number

    return checked


def _base_record(row: JudgedTurn) -> dict[str, Any]:
    """The record of a turn that has no audit, in the order of the specification's example."""
    body = row.body
    return {
        "timestamp": body["time"],
        "turn": row.turn,
        "userPrompt": body["prompt"],
        "intellectDraft": body["draft"],
        "intellectReflection": body["reflection"],
        "finalOutput": body["final"],
        "willDecision": body["decision"],
        "willReflection": body["reason"],
        "conscienceLedger": [],
        "spiritScore": None,
        "drift": None,
        "spiritReflection": None,
        "turnId": row.id,
        "memoryKey": body["key"],
        "driftRaw": None,
        "auditStatus": "none",
        **{name: body[name] for name in ("auditReason", "sampling") if name in body},
        "valueSet": body["valueSet"],
        "models": {**body["models"], **({"conscience": row.judge} if row.judge else {})},
        "prompts": body["prompts"],
        "flags": body["flags"],
        "drafts": body["drafts"],
        "agreement": body["agreement"],
        **({"notShown": body["notShown"]} if body["notShown"] else {}),
        **({"reauditOf": body["reauditOf"]} if "reauditOf" in body else {}),
    }


def _assessed(assessment: Assessment, findings: list[ContinuousFinding], values: ValueSet) -> dict[str, Any]:
    return {
        "conscienceLedger": [finding.model_dump() for finding in findings],
        "spiritScore": assessment.score,
        "drift": assessment.drift,
        "driftRaw": assessment.drift_raw,
        "spiritReflection": reflection(assessment, read_ledger(findings, values, ContinuousFinding)),
        "auditStatus": "complete" if assessment.score is not None else "failed",
    }


def split_ledger(stored: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The findings of a stored ledger, and the ``localJudge`` of its last row if there is one."""
    if stored and LOCAL_JUDGE in stored[-1]:
        return stored[:-1], stored[-1][LOCAL_JUDGE]
    return stored, None


def has_unscored(local: Mapping[str, Any]) -> bool:
    """Whether the ``localJudge`` of a record has a value that no judge scored."""
    return any(row["judge"] is None for row in local["findings"])


def unfounded(assessment: Assessment, findings: Sequence[ContinuousFinding]) -> list[str]:
    """The flag of a score without a basis: no weighted value was affirmed or broken, or none with confidence."""
    if assessment.score is None:
        return []
    counted = {key: abs(weighted) for key, weighted in assessment.profile.items() if weighted}
    if not counted:
        return ["all_omitted"]
    sure = math.fsum(counted.get(label(row.value), 0.0) * row.confidence for row in findings)
    return ["no_confidence"] if sure < LEAST_CONFIDENCE * math.fsum(counted.values()) else []


def _next_memory(before: Memory, assessment: Assessment) -> Memory:
    if assessment.score is None:
        return before
    return Memory(assessment.mu, before.mu_turn + 1, [*before.scores, assessment.score][-KEPT:])


def _memory(after: Memory) -> dict[str, Any]:
    return {"mu": after.mu, "muTurn": after.mu_turn}


def _flagged(record: dict[str, Any], measure: Measure) -> dict[str, Any]:
    return {**record, "flags": [*record["flags"], *measure.alert_kinds(record)]}
