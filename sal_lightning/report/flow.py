"""A Pulse-Split-Cascade as a JSON record, and as lanes of a plot."""

import json
from itertools import count
from pathlib import Path
from typing import Any

from sal_lightning.emergence.cascade import PulseCascade
from sal_lightning.report.reading import CASCADE

FIELDS = ("number", "lineage", "parent", "born", "ended", "fate", "into", "weight")
Record = dict[str, Any]


def record(cascade: PulseCascade) -> Record:
    """All pulses and the emerged one, as JSON values, without the states."""
    found = cascade.emerge()
    return {
        "generations": cascade.generation,
        "emerged": found.pulse.number,
        "share": found.share,
        "pulses": [{name: getattr(pulse, name) for name in FIELDS} for pulse in cascade.pulses],
    }


def save(cascade: PulseCascade, folder: Path) -> Path:
    """Write the record into the folder of a run, for ``sal report``; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CASCADE
    file.write_text(json.dumps(record(cascade)), encoding="utf-8")
    return file


def lanes(pulses: list[Record], generations: int) -> dict[int, int]:
    """Assign a lane to each pulse: living pulses never share one, and those of one lineage are adjacent.

    >>> born = [dict(number=0, lineage=0, born=0, ended=2), dict(number=1, lineage=1, born=0, ended=None)]
    >>> lanes([*born, dict(number=2, lineage=0, born=3, ended=None)], 3)
    {0: 0, 2: 0, 1: 1}
    """
    given: dict[int, int] = {}
    base = 0
    for lineage in sorted({pulse["lineage"] for pulse in pulses}):
        free: list[int] = []  # for each lane, the first generation in which it is free
        for pulse in sorted((p for p in pulses if p["lineage"] == lineage), key=lambda p: (p["born"], p["number"])):
            lane = next(i for i in count() if i == len(free) or free[i] < pulse["born"])
            until = generations if pulse["ended"] is None else pulse["ended"]
            free[lane : lane + 1] = [until]
            given[pulse["number"]] = base + lane
        base += len(free)
    return given
