"""The contents of a report in bounded memory: columns of figures for the plots, counts, and the newest records."""

from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from safi_agent import defaults
from safi_agent.log.rotation import log_files
from safi_agent.report.binning import NONE
from safi_agent.report.entries import Entry, read, records
from safi_agent.report.local_judge import LocalJudgements

MOST_VALUES = 100  # bounds memory if the ledgers of a log contain arbitrary names
JUDGES = ("will", "conscience")
MOST_MODELS = 100  # names of judges' models, likewise


@dataclass
class Series:
    """The turns of one memory key: number, time, score and drift of each; NaN for a missing figure.

    Times are in seconds since 1970, in UTC.
    """

    turns: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[float]" = field(default_factory=lambda: array("d"))
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    drifts: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass
class Review:
    """The contents of a report.

    ``values`` has a column of scores for each value, as long as ``places``. ``models`` counts the turns judged by each
    model, by faculty and the model's name. ``local`` is about a local judge.
    """

    name: str
    review_below: float
    drift_above: float
    newest: "deque[Entry]"
    queue: "deque[Entry]"
    places: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[float]" = field(default_factory=lambda: array("d"))
    unread: int = 0
    first: str = ""
    last: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    keys: dict[str, Series] = field(default_factory=dict)
    values: dict[str, "array[float]"] = field(default_factory=dict)
    models: dict[tuple[str, str], int] = field(default_factory=dict)
    local: LocalJudgements = field(default_factory=LocalJudgements)

    @property
    def turns(self) -> int:
        """The number of records in the log."""
        return len(self.places)

    @property
    def flagged(self) -> int:
        """The number of turns to review, including those that are not shown in full."""
        return self.counts["flagged"]

    def entries(self) -> list[Entry]:
        """The turns that are shown in full, newest first."""
        by_place = {entry.place: entry for entry in (*self.queue, *self.newest)}
        return [by_place[place] for place in sorted(by_place, reverse=True)]

    def add(self, entry: Entry) -> None:
        """Add a line of the log."""
        self.places.append(entry.place)
        self.times.append(seconds(entry.time))
        self.first, self.last = self.first or entry.time, entry.time or self.last
        self.counts.update([*entry.reasons, *(["flagged"] if entry.reasons else []), f"decision:{entry.decision}"])
        self.counts["not_drawn"] += entry.record.get("auditReason") == "not_drawn"
        self.newest.append(entry)
        if entry.reasons:
            self.queue.append(entry)
        series = self.keys.setdefault(entry.key, Series())
        series.turns.append(entry.turn)
        series.times.append(self.times[-1])
        series.scores.append(NONE if entry.score is None else entry.score)
        series.drifts.append(NONE if entry.drift is None else entry.drift)
        self._add_models(entry)
        self.local.add(entry.place, entry.record)
        for name in entry.ledger:
            if len(self.values) < MOST_VALUES:
                self.values.setdefault(name, array("f", [NONE]) * (self.turns - 1))
        for name, column in self.values.items():
            column.append(entry.ledger.get(name, NONE))

    def _add_models(self, entry: Entry) -> None:
        named = entry.record.get("models")
        for faculty in JUDGES:
            name = named.get(faculty) if isinstance(named, dict) else None
            if isinstance(name, str) and (len(self.models) < MOST_MODELS or (faculty, name) in self.models):
                self.models[faculty, name] = self.models.get((faculty, name), 0) + 1


def seconds(time: str) -> float:
    """A time of the log in seconds since 1970; NaN if it is none.

    >>> seconds("1970-01-01T00:01:00Z"), seconds("yesterday")
    (60.0, nan)
    """
    try:
        at = datetime.fromisoformat(time)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return NONE


def review(
    path: str | Path,
    newest: int = 500,
    review_below: float = defaults.REVIEW_BELOW,
    drift_above: float = defaults.DRIFT_ABOVE,
) -> Review:
    """Read a log, including its rotated files, in one pass.

    Args:
        path: the log; its rotated files are beside it.
        newest: number of newest turns, and of newest turns to review, that are kept in full.
        review_below: τ_S, turns with a lower score are to be reviewed.
        drift_above: τ_d, turns with a higher drift are to be reviewed.

    Raises:
        ValueError: the log does not exist or has no record, or ``newest`` is below 1.
    """
    path = Path(path)
    if not log_files(path):
        raise ValueError(f"log: expected an existing file, got {str(path)!r}.")
    if newest < 1:
        raise ValueError(f"newest: expected at least 1, got {newest}.")
    name = path.name.encode(errors="replace").decode()
    contents = Review(name, review_below, drift_above, deque(maxlen=newest), deque(maxlen=newest))
    for place, record in records(path):
        if record is None:
            contents.unread += 1
        else:
            contents.add(read(record, place, review_below, drift_above))
    if not contents.turns:
        raise ValueError(
            f"log: expected at least one record, got none in {str(path)!r}; {contents.unread} lines could not be read."
        )
    return contents
