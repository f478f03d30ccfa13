"""Replay a log: recompute score, μ and drift of every line from its ledger, and compare."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safi_agent import defaults
from safi_agent.contents import erased_turns, is_erased
from safi_agent.errors import LogError
from safi_agent.faculties.spirit import assess, identity, linear
from safi_agent.ledger import ContinuousFinding
from safi_agent.log.hash_chain import record_of
from safi_agent.log.rotation import lines, log_files
from safi_agent.log.verify import MOST_FAULTS, Fault
from safi_agent.values import ValueSet

FIGURES = ("spiritScore", "drift", "driftRaw", "mu", "muTurn")
TOLERANCE = 1e-9  # relative and absolute: results of other processors may differ in the last bit
# Exceptions that a malformed or malicious line may raise.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
DEFAULT_MAPS = (identity.__name__, linear.__name__)
Find = Callable[[str], ValueSet | None]
Figures = dict[str, Any]


class Replayed(NamedTuple):
    """The result of a replay: the first faults, the number of faults, and the number of lines.

    ``late`` counts memory keys whose first turn is not in the log, ``other_maps`` scores with a custom φ or σ. Neither
    could be recomputed. ``erased`` counts lines without contents, whose figures are recomputed like those of others.
    """

    faults: tuple[Fault, ...]
    faulty: int
    lines: int
    late: int
    other_maps: int
    erased: int = 0


class _KeyState(NamedTuple):
    """The state of a memory key after a line."""

    turn: int
    mu: dict[str, float]
    mu_turn: int


NEW = _KeyState(0, {}, 0)


def replay(log: str | Path, find: Find, beta: float = defaults.BETA) -> Replayed:
    """Replay all files of a log, one line at a time.

    If a key's first turn is not in the log, its first μ and drift are accepted. After a fault the replay continues from
    the line's own figures, so that each fault is reported once.

    Args:
        log: its path.
        find: a value set by its fingerprint or, in lines of an older version, by its name.
        beta: the decay of the profile in [0, 1), for lines that do not contain it.

    Raises:
        FileNotFoundError: the log does not exist.
        LogError: ``find`` returns no value set for a line.
    """
    if not (files := log_files(log)):
        raise FileNotFoundError(f"expected an existing log, got {str(log)!r}.")
    replayer = _Replayer(find, beta)
    faults: list[Fault] = []
    faulty = 0
    for path in files:
        with path.open("rb") as file:
            for at, line in enumerate(lines(file), 1):
                for what in replayer.replay_line(line):
                    faulty += 1
                    faults += [Fault(str(path), at, what)] if faulty <= MOST_FAULTS else []
    return Replayed(tuple(faults), faulty, replayer.lines, replayer.late, replayer.other_maps, replayer.erased)


class _Replayer:
    """Recomputes each line in order, with the state of each memory key."""

    def __init__(self, find: Find, beta: float) -> None:
        self.find, self.beta = find, beta
        self.states: dict[str, _KeyState] = {}
        self.lines = self.late = self.other_maps = self.erased = 0

    def replay_line(self, line: bytes) -> Iterator[str]:
        """The faults of the next line."""
        self.lines += 1
        record = record_of(line)
        if erased_turns(record):
            return
        self.erased += is_erased(record)
        try:
            yield from self._compared(*_read(line))
        except UNREADABLE as error:
            yield f"is not a record that can be recomputed ({type(error).__name__})"

    def _compared(self, record: dict[str, Any], findings: list[ContinuousFinding], state: "_KeyState") -> Iterator[str]:
        key = record["memoryKey"]
        before, self.states[key] = self.states.get(key), state
        named = f"turn {state.turn} of {key!r}"
        if before is not None and state.turn != before.turn + 1:
            yield f"{named}: expected turn {before.turn + 1}"
            return
        expected = self._expected(record, findings, before or NEW)
        if before is None and state.turn != 1:  # the previous μ is not in this log
            self.late += 1
            expected.update({name: record[name] for name in FIGURES[1:]})
        for name, figure in expected.items():
            if not _same(figure, record[name]):
                yield f"{named}: {name} is {record[name]!r}, but its ledger gives {figure!r}"

    def _expected(self, record: Mapping[str, Any], findings: list[ContinuousFinding], before: _KeyState) -> Figures:
        """The expected figures of a line; without the score if a custom φ or σ was used.

        A custom φ or σ may have raised; the audit has then failed, although its ledger has findings.
        """
        nothing = _figures(None, None, None, before.mu, before.mu_turn)
        if not findings:
            return nothing
        measure = record.get("measure", {})
        others = (measure.get("phi", DEFAULT_MAPS[0]), measure.get("sigma", DEFAULT_MAPS[1])) != DEFAULT_MAPS
        if others and record.get("auditStatus") == "failed":
            self.other_maps += 1
            return nothing
        name = measure.get("values", record["valueSet"])
        if (values := self.find(name)) is None:
            raise LogError(
                f"expected the value set {name!r} of turn {record['turnId']}, got none; pass its file with --values."
            )
        assessment = assess(findings, values, before.mu, measure.get("beta", self.beta))
        moved = before.mu_turn + (assessment.score is not None)
        expected = _figures(assessment.score, assessment.drift, assessment.drift_raw, assessment.mu, moved)
        if others and assessment.score is not None:
            self.other_maps += 1
            del expected["spiritScore"]
        return expected


def _read(line: bytes) -> tuple[dict[str, Any], list[ContinuousFinding], _KeyState]:
    record = json.loads(line)
    findings = [ContinuousFinding.model_validate(row) for row in record["conscienceLedger"]]
    _figures(*(record[name] for name in FIGURES))
    if not isinstance(record["memoryKey"], str):
        raise TypeError
    return record, findings, _KeyState(int(record["turn"]), dict(record["mu"]), int(record["muTurn"]))


def _figures(*values: Any) -> Figures:
    return dict(zip(FIGURES, values, strict=True))


def _same(one: object, other: object) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(one) is type(other) and one == other
