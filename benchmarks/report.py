"""Results on disk, and the part of a page that is written from them."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from experiments import provenance
from experiments.continual.data import write_whole

Record = dict[str, Any]


class Spread(NamedTuple):
    """The median of some ratios, the least and the greatest."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """
    >>> spread([1.0, 3.0, 2.0])
    Spread(median=2.0, least=1.0, most=3.0)
    """
    return Spread(median(values), min(values), max(values))


def origin(command: str, seed: int, device: str) -> Record:
    """Where the numbers come from."""
    return {
        "command": command,
        "seed": seed,
        "commit": provenance.commit(),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
    }


def save(record: Record, file: Path) -> None:
    """Write the record, whole or not at all."""
    write_whole(file, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def read_all(folder: Path) -> list[Record]:
    """Every record in the folder, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def source(record: Record) -> str:
    """How to get a record again, and what it was made with."""
    hardware, versions = record["hardware"], record["versions"]
    machine = f"{hardware.get('gpu', hardware['cpu'])}, {hardware['cores']} cores"
    dirty = "-dirty" if record["commit"].endswith("-dirty") else ""
    made = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"`{record['command']}`\n\nCommit {record['commit'][:8]}{dirty}; {machine}; {made}.\n"
