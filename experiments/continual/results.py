"""Results on disk: one JSON file a run, and tables made from them."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.continual.data import write_whole
from experiments.continual.metrics import Estimate, estimate
from experiments.continual.protocol import Result

Record = dict[str, Any]
COLUMNS = ("average", "worst", "just_learned", "drift")
HEADINGS = ("method", "seeds", "average", "worst", "just learned", "drift", "seconds", "events")


class Run(NamedTuple):
    """What tells one run from another."""

    stream: str
    method: str
    data: str
    seed: int
    steps: int
    lr: float

    def file(self, folder: Path) -> Path:
        """Where its result lies.

        >>> Run("permuted", "sal", "mnist", 0, 500, 1e-4).file(Path("out")).name
        'permuted-mnist-sal-steps500-lr0.0001-seed0.json'
        """
        return folder / f"{self.stream}-{self.data}-{self.method}-steps{self.steps}-lr{self.lr:g}-seed{self.seed}.json"


def save(result: Result, folder: Path) -> Path:
    """Write the record, whole or not at all."""
    file = Run(result.scenario, result.method, result.data, result.seed, result.steps, result.lr).file(folder)
    write_whole(file, (json.dumps(result.record(), indent=1, allow_nan=False) + "\n").encode())
    return file


def read(file: Path) -> Record:
    """One record."""
    record: Record = json.loads(file.read_text())
    return record


def read_all(folder: Path) -> list[Record]:
    """Every record in the folder, in the order of file names."""
    return [read(file) for file in sorted(folder.glob("*.json"))]


class Row(NamedTuple):
    """One method over its seeds."""

    method: str
    seeds: int
    estimates: dict[str, Estimate]
    seconds: float
    events: float

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``HEADINGS``."""
        estimates = (str(self.estimates[column]) if column in self.estimates else "" for column in COLUMNS)
        return self.method, str(self.seeds), *estimates, f"{self.seconds:.1f}", f"{self.events:g}"


def row(method: str, records: Sequence[Record]) -> Row:
    """Means and standard errors over the records of one method."""
    known = {c: [r[c] for r in records if r[c] is not None] for c in COLUMNS}
    estimates = {column: estimate(values) for column, values in known.items() if values}
    seconds, events = (math.fsum(values) / len(records) for values in zip(*map(cost, records), strict=True))
    return Row(method, len(records), estimates, seconds, events)


def cost(record: Record) -> tuple[float, float]:
    """Seconds taken, and how often the method consolidated."""
    return record["seconds"], len(record["events"])


def rows(records: Iterable[Record]) -> list[Row]:
    """One row a method, in the order they came."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    return [row(method, group) for method, group in groups.items()]


def title(record: Record) -> str:
    """What the runs in one table have in common."""
    return f"{record['scenario']}, {record['data']}, {record['steps']} steps a task, learning rate {record['lr']:g}"


def markdown(records: Iterable[Record]) -> str:
    """All records as tables, one for each setting; mean ± standard error over seeds."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(title(record), []).append(record)
    return "\n".join(markdown_table(name, rows(group)) for name, group in groups.items())


def markdown_table(name: str, table: Sequence[Row]) -> str:
    """One table under its heading."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(r.cells() for r in table)]
    return f"## {name}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
