"""Results of all runs in one JSON Lines file, and their means over seeds."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from experiments.detection.protocol import Heard
from experiments.filing import Record
from experiments.networks.networks import NAMES
from experiments.networks.protocol import METHODS, Run, measures
from experiments.networks.streams import STREAMS


def read(file: Path) -> list[Record]:
    """All runs in the file, of repeated ones the last; incomplete lines are left out."""
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    records = {key(record): record for record in map(json.loads, lines)}
    return [records[run] for run in sorted(records, key=place)]


def place(run: Run) -> tuple[int, int, int, Run]:
    """Sort key: networks, streams and methods in the order of their lists, then seeds."""
    streams = list(STREAMS)
    method = METHODS.index(run.method) if run.method in METHODS else len(METHODS)
    return NAMES.index(run.network), streams.index(run.stream), method, run


def key(record: Record) -> Run:
    """Key that identifies a run."""
    return Run(*(record[field] for field in Run._fields))


def append(record: Record, file: Path) -> None:
    """Append a run as one line; an incomplete last line is removed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as opened:
        if opened.tell():
            opened.seek(-1, 2)
            if opened.read(1) != b"\n":
                opened.seek(0)
                opened.truncate(opened.read().rfind(b"\n") + 1)
        opened.write((json.dumps(record, allow_nan=False) + "\n").encode())


class Cell(NamedTuple):
    """Means over seeds for one method, network and stream."""

    was: float
    old: float
    new: float

    def __str__(self) -> str:
        """Old and new."""
        return f"{self.old:.3f} / {self.new:.3f}"


def cell(records: Sequence[Record]) -> Cell:
    """Means over seeds."""
    return Cell(*(fmean(found) for found in zip(*(measures(r).values() for r in records), strict=True)))


def heard(record: Record) -> Heard:
    """Convert a record for the measures of ``detection``."""
    return Heard(tuple(record["changes"]), [0.0] * record["length"], record["events"])


Group = dict[tuple[str, str, str], list[Record]]


def grouped(records: Iterable[Record]) -> Group:
    """Group records by network, stream and method."""
    groups: Group = {}
    for r in records:
        groups.setdefault((r["network"], r["stream"], r["method"]), []).append(r)
    return groups
