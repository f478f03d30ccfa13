"""The Conscience's ledger: one finding per value, and the validation of a judge's rows."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from langchain_core.messages.ai import UsageMetadata
from pydantic import BaseModel, ConfigDict, field_validator
from typing_extensions import override

from safi_agent.values import ValueSet, label

SCORES = (-1.0, 0.0, 0.5, 1.0)


def number(value: object, low: float, high: float) -> float | None:
    """The value as a float in [low, high]; None for anything else, including bool and NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high else None


class Finding(BaseModel):
    """One value's row of the ledger: violation −1, omission 0, partly affirmed ½, affirmed 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: str  #: the value's name, in any spelling
    score: float  #: -1, 0, 0.5 or 1
    confidence: float  #: in [0, 1]
    reason: str = ""  #: the judge's reason, for the log

    @field_validator("score", mode="before")
    @classmethod
    def _score(cls, score: object) -> float:
        if (read := number(score, -1, 1)) not in SCORES:
            raise ValueError(f"Expected a score in {SCORES}, got {score!r}.")
        return float(read or 0)

    @field_validator("confidence", mode="before")
    @classmethod
    def _confidence(cls, confidence: object) -> float:
        if (read := number(confidence, 0, 1)) is None:
            raise ValueError(f"Expected a confidence in [0, 1], got {confidence!r}.")
        return read

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same row if nothing would change, since rows are immutable."""
        if update == {"value": self.value}:
            return self
        return super().model_copy(update=update, deep=deep)


class ContinuousFinding(Finding):
    """A row whose score may be any number in [−1, 1], for ``score_mode="continuous"``."""

    @field_validator("score", mode="before")
    @classmethod
    def _score(cls, score: object) -> float:
        if (read := number(score, -1, 1)) is None:
            raise ValueError(f"Expected a score in [-1, 1], got {score!r}.")
        return read


class Findings(list[Finding]):
    """The findings of a ledger, the judge's model name (empty if its replies had none), and its token usage.

    ``local`` is the record's ``localJudge`` if a local judge took part.
    """

    def __init__(self, rows: Iterable[Finding], model: str = "", usage: UsageMetadata | None = None) -> None:
        super().__init__(rows)
        self.model, self.usage = model, usage
        self.local: dict[str, Any] | None = None


class Ledger(NamedTuple):
    """The valid rows by normalized name, the names without one, and whether enough values are covered."""

    findings: dict[str, Finding]
    unscored: tuple[str, ...]
    covered: bool


def read_ledger(rows: Iterable[Any], values: ValueSet, kind: type[Finding] = Finding) -> Ledger:
    """Validate rows; malformed ones, scores out of range and unknown values are treated as absent.

    Of several rows for one value, the one with the lowest score is kept, and at equal scores the one with the lowest
    score times confidence. The values are covered if each hard gate and more than half of the weighted values have a
    row.
    """
    names = {value.key: value.name for value in values.values}
    findings: dict[str, Finding] = {}
    for row in rows:
        finding = _finding(row, kind)
        if finding is None or (key := label(finding.value)) not in names:
            continue
        finding = finding.model_copy(update={"value": names[key]})
        if key not in findings or _harm(finding) < _harm(findings[key]):
            findings[key] = finding
    ordered = {key: findings[key] for key in names if key in findings}
    scored = sum(value.key in findings for value in values.scored)
    covered = all(gate.key in findings for gate in values.gates) and 2 * scored > len(values.scored)
    return Ledger(ordered, tuple(name for key, name in names.items() if key not in findings), covered)


def _harm(finding: Finding) -> tuple[float, float]:
    """The order of two rows of one value: by score, then by score times confidence."""
    return finding.score, finding.score * finding.confidence


def _finding(row: object, kind: type[Finding]) -> Finding | None:
    if isinstance(row, Finding):
        return row if _is_sound(row) else _finding(row.model_dump(), type(row))
    if not isinstance(row, Mapping):
        return None
    reason = row.get("reason", "")
    fields = {"value": row.get("value"), "score": row.get("score"), "confidence": row.get("confidence")}
    try:
        return kind.model_validate({**fields, "reason": reason if isinstance(reason, str) else ""})
    except ValueError:
        return None


def _is_sound(row: Finding) -> bool:
    """Whether a row, however it was created, satisfies the validation of its class."""
    score = number(row.score, -1, 1)
    return (
        type(row) in (Finding, ContinuousFinding)
        and score is not None
        and (score in SCORES or type(row) is ContinuousFinding)
        and number(row.confidence, 0, 1) is not None
        and type(row.value) is type(row.reason) is str
    )
