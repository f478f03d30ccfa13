"""A whole log in a bounded space: columns of figures for the plots, counts, and the newest records themselves."""

from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from safi_agent import defaults
from safi_agent.log.rotation import log_files
from safi_agent.report.binning import NONE
from safi_agent.report.entries import Entry, read, records

MOST_VALUES = 100  # a log with more names in its ledgers was not written by one set of values


@dataclass
class Series:
    """One memory key: the numbers of its turns, and score and drift of each."""

    turns: "array[int]" = field(default_factory=lambda: array("q"))
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    drifts: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass
class Review:
    """What the page is made of; ``values`` has a column of scores for each value, as long as ``places``."""

    name: str
    review_below: float
    drift_above: float
    newest: "deque[Entry]"
    queue: "deque[Entry]"
    places: "array[int]" = field(default_factory=lambda: array("q"))
    unread: int = 0
    first: str = ""
    last: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    keys: dict[str, Series] = field(default_factory=dict)
    values: dict[str, "array[float]"] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """How many records the log has."""
        return len(self.places)

    @property
    def flagged(self) -> int:
        """How many turns there are to review, shown in full or not."""
        return self.counts["flagged"]

    def entries(self) -> list[Entry]:
        """The turns that are shown in full, the newest first."""
        kept = {entry.place: entry for entry in (*self.queue, *self.newest)}
        return [kept[place] for place in sorted(kept, reverse=True)]

    def add(self, entry: Entry) -> None:
        """Count a line."""
        self.places.append(entry.place)
        self.first, self.last = self.first or entry.time, entry.time or self.last
        self.counts.update([*entry.reasons, *(["flagged"] if entry.reasons else []), f"decision:{entry.decision}"])
        self.newest.append(entry)
        if entry.reasons:
            self.queue.append(entry)
        series = self.keys.setdefault(entry.key, Series())
        series.turns.append(entry.turn)
        series.scores.append(NONE if entry.score is None else entry.score)
        series.drifts.append(NONE if entry.drift is None else entry.drift)
        for name in entry.ledger:
            if len(self.values) < MOST_VALUES:
                self.values.setdefault(name, array("f", [NONE]) * (self.turns - 1))
        for name, column in self.values.items():
            column.append(entry.ledger.get(name, NONE))


def review(
    path: str | Path,
    newest: int = 500,
    review_below: float = defaults.REVIEW_BELOW,
    drift_above: float = defaults.DRIFT_ABOVE,
) -> Review:
    """Read a log once, from its first line to its last, its full files included.

    Args:
        path: the log; its full files are found beside it.
        newest: how many of the newest turns, and of the newest turns to review, are kept in full.
        review_below: τ_S, a score below it is to be reviewed.
        drift_above: τ_d, a drift above it is to be reviewed.

    Raises:
        ValueError: there is no such file, ``newest`` is below 1, or the log has no record.
    """
    path = Path(path)
    if not log_files(path):
        raise ValueError(f"log: expected a file that is there, got {str(path)!r}.")
    if newest < 1:
        raise ValueError(f"newest: expected at least 1, got {newest}.")
    name = path.name.encode(errors="replace").decode()
    made = Review(name, review_below, drift_above, deque(maxlen=newest), deque(maxlen=newest))
    for place, record in records(path):
        if record is None:
            made.unread += 1
        else:
            made.add(read(record, place, review_below, drift_above))
    if not made.turns:
        raise ValueError(f"log: expected at least one record, got none in {str(path)!r}, {made.unread} lines unread.")
    return made
