"""Parse the lines of a log for the report. Lines may come from any writer, so no field is trusted."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safi_agent.contents import erased_turns
from safi_agent.hooks import alert_kinds, is_unfounded
from safi_agent.ledger import number
from safi_agent.log.hash_chain import record_of
from safi_agent.log.rotation import lines, log_files
from safi_agent.values import label

Reason = Literal[
    "audit_failed", "review", "unfounded", "drift", "judge_drift", "violation", "shadow", "intellect_failed"
]
REASONS: dict[Reason, str] = {
    "audit_failed": "failed audit",
    "review": "low score",
    "unfounded": "score without a basis",
    "drift": "high drift",
    "judge_drift": "local judge disagrees",
    "violation": "violation",
    "shadow": "violation in shadow mode",
    "intellect_failed": "no draft",
}

MOST_TURNS = 2**53


class Entry(NamedTuple):
    """One line of a log: its number, the fields that are counted and plotted, the reasons for a review, the record.

    ``score`` is in [1, 10] and ``drift`` in [0, 1]; ``ledger`` maps names of values to scores in [−1, 1].
    """

    place: int
    key: str
    turn: int
    time: str
    decision: str
    score: float | None
    drift: float | None
    ledger: dict[str, float]
    reasons: tuple[Reason, ...]
    record: Mapping[str, Any]


def records(log: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line numbers, from 1 over all files of a log, and records of turns; None for a line that is not a record.

    Records of erasures are left out.
    """
    for place, line in enumerate(_lines(log), 1):
        if erased_turns(record_of(line)):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        is_record = isinstance(record, dict) and "turnId" in record and "willDecision" in record
        yield place, record if is_record else None


def _lines(log: Path) -> Iterator[bytes]:
    for path in log_files(log):
        with path.open("rb") as file:
            yield from lines(file)


def read(record: Mapping[str, Any], place: int, review_below: float, drift_above: float) -> Entry:
    """The entry of a record; a field of the wrong type is treated as missing."""
    score, drift = number(record.get("spiritScore"), 1, 10), number(record.get("drift"), 0, 1)
    decision, turn = record.get("willDecision"), number(record.get("turn"), 1, MOST_TURNS)
    checked = {
        "spiritScore": score,
        "drift": drift,
        "auditStatus": record.get("auditStatus"),
        "localJudge": record.get("localJudge"),
    }
    reasons: list[Reason] = []
    flags = record.get("flags")
    flags = flags if isinstance(flags, list) else []
    if decision == "violation":
        reasons.append("shadow" if "shadow" in flags else "violation")
    elif decision != "approve":
        reasons.append("intellect_failed")
    if is_unfounded({"flags": flags}):
        reasons.append("unfounded")
    kinds = alert_kinds(checked, review_below, drift_above)
    # A failed audit has no score that could be low.
    reasons += [kind for kind in kinds if kind != "review" or score is not None]
    return Entry(
        place=place,
        key=str(record.get("memoryKey") or record.get("valueSet") or ""),
        turn=place if turn is None else int(turn),
        time=str(record.get("timestamp") or ""),
        decision=str(decision or ""),
        score=score,
        drift=drift,
        ledger=_scores(record.get("conscienceLedger")),
        reasons=tuple(reasons),
        record=record,
    )


def _scores(rows: object) -> dict[str, float]:
    """Scores by the value's name; if a name occurs in two spellings, the last one."""
    scores: dict[str, tuple[str, float]] = {}
    for row in rows if isinstance(rows, list) else []:
        name = row.get("value") if isinstance(row, dict) else None
        score = number(row.get("score"), -1, 1) if isinstance(row, dict) else None
        if isinstance(name, str) and score is not None:
            scores[label(name)] = (name, score)
    return dict(scores.values())
