"""Results on disk, one JSON file per run, and tables made from them."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import filing
from experiments.continual.methods import METHODS, parse
from experiments.continual.metrics import Estimate, estimate
from experiments.continual.protocol import Result
from experiments.continual.reported import CLOSE, DIFFERENT, REPORTED
from experiments.continual.streams import STREAMS
from experiments.filing import Record
from experiments.pages import grid

COLUMNS = {
    "average": "average",
    "worst": "worst",
    "just_learned": "just learned",
    "forgetting": "forgetting",
    "drift": "drift",
    "lowest": "min-ACC",
    "worst_case": "WC-ACC",
    "forward_transfer": "forward",
}
SHORT = ("average", "worst", "just_learned", "drift")
COMPARED = (
    "split-task",
    "split-domain",
    "split-class",
    "split-domain-fuzzy",
    "split-class-fuzzy",
    "permuted",
    "rotated",
)


ABOUT = """\
Written by `python -m experiments.continual --from-records --table`, not by hand. *Features*: whether the method trains
the hidden layers; if not, its classifier is computed in closed form on the *pixels* or on *random* features of them.
*Reported*: the average accuracy that others publish for the method on this stream, over 1 to 20 seeds;
`experiments/continual/reported.py` names them. A seed deals the classes into tasks, but in the `ordered` and
`owm-class` streams. That moves the average of some methods by several points: see their standard errors, and expect a
row of one seed to lie as far from the reported mean. Methods in closed form see each sample about once, in as many
steps as their row says. The learning rate is that of Adam; `stable-sgd`, `owm` and `gpm` train with SGD at their own.
`owm-class` and `owm-permuted` are the streams that OWM was published on, `gpm-permuted` that of GPM, with their
networks, batch sizes and numbers of steps."""


class Run(NamedTuple):
    """Parameters of a run."""

    stream: str
    method: str
    data: str
    seed: int
    steps: int
    lr: float

    def file(self, folder: Path) -> Path:
        """The path of its result.

        >>> Run("permuted", "sal", "mnist", 0, 500, 1e-4).file(Path("out")).name
        'permuted-mnist-sal-steps500-lr0.0001-seed0.json'
        >>> Run("permuted", "sal:strength=8", "mnist", 0, 500, 1e-4).file(Path("out")).name
        'permuted-mnist-sal-strength=8-steps500-lr0.0001-seed0.json'
        """
        method = self.method.replace(":", "-")  # colons are invalid in file names on some systems
        return folder / f"{self.stream}-{self.data}-{method}-steps{self.steps}-lr{self.lr:g}-seed{self.seed}.json"


def save(result: Result, folder: Path) -> Path:
    """Write the record atomically."""
    file = Run(result.scenario, result.method, result.data, result.seed, result.steps, result.lr).file(folder)
    filing.save(result.record(), file)
    return file


def read_all(folder: Path) -> list[Record]:
    """All records in the folder: streams and methods in the order of their lists, then seeds."""
    streams, methods = list(STREAMS), list(METHODS)

    def place(record: Record) -> tuple[int, int, str, int]:
        method = record["method"]
        return streams.index(record["scenario"]), methods.index(parse(method)[0]), method, record["seed"]

    return sorted(filing.read_all(folder), key=place)


class Row(NamedTuple):
    """Means over seeds for one method."""

    method: str
    seeds: int
    estimates: dict[str, Estimate]
    seconds: float
    events: float

    def cells(self, columns: Iterable[str] = COLUMNS) -> tuple[str, ...]:
        """The row as text, in the order of ``headings``."""
        estimates = (str(self.estimates[column]) if column in self.estimates else "" for column in columns)
        return self.method, str(self.seeds), *estimates, f"{self.seconds:.1f}", f"{self.events:g}"


def headings(columns: Iterable[str] = COLUMNS) -> tuple[str, ...]:
    """Headings of the cells of a row."""
    return "method", "seeds", *(COLUMNS[column] for column in columns), "seconds", "events"


def row(method: str, records: Sequence[Record]) -> Row:
    """Means and standard errors over the records of one method."""
    values = [r["measures"] | {"drift": r["drift"]} for r in records]
    known = {c: [v[c] for v in values if v[c] is not None] for c in COLUMNS}
    estimates = {column: estimate(values) for column, values in known.items() if values}
    seconds, events = (math.fsum(costs) / len(records) for costs in zip(*map(cost, records), strict=True))
    return Row(method, len(records), estimates, seconds, events)


def cost(record: Record) -> tuple[float, float]:
    """Duration in seconds, and number of consolidations."""
    return record["seconds"], len(record["events"])


def rows(records: Iterable[Record]) -> list[Row]:
    """One row per method, in order of appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    return [row(method, group) for method, group in groups.items()]


def cells(records: Iterable[Record], columns: Iterable[str] = COLUMNS) -> list[tuple[str, ...]]:
    """The rows as text, matching ``headings``."""
    return [r.cells(columns) for r in rows(records)]


def title(record: Record) -> str:
    """The parameters that the runs of a table share."""
    return f"{record['scenario']}, {record['data']}, {record['steps']} steps a task, learning rate {record['lr']:g}"


def markdown(records: Iterable[Record]) -> str:
    """All records as tables, one per setting, mean ± standard error over seeds; or a note if there are none."""
    groups = grouped(records)
    parts = [
        f"### {name}\n\n{grid(*table(group))}\n{not_run(group)}{differences(group)}{source(group)}"
        for name, group in groups.items()
    ]
    seen = {group[0]["scenario"] for group in groups.values() if compared(group)}
    parts += [f"### {stream}, mnist\n\nNot run.\n" for stream in COMPARED if seen and stream not in seen]
    return f"## Streams of images\n\n{ABOUT}\n\n" + "\n".join(parts)


def grouped(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by title.

    Methods in closed form see each sample about once, in fewer steps: they join the table of the methods that are
    trained on the same stream and data, and their names there say how many steps they had.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(title(record), []).append(record)
    for name in [name for name, group in groups.items() if all(map(closed_form, group))]:
        first = groups[name][0]
        like = [n for n, g in groups.items() if n != name and setting(g[0]) == setting(first) and not closed_form(g[0])]
        if like:
            label = f", {first['steps']} steps"
            groups[max(like, key=lambda n: len(groups[n]))] += [
                record | {"method": record["method"] + label} for record in groups.pop(name)
            ]
    return groups


def closed_form(record: Record) -> bool:
    """Whether the method trains no features."""
    return features(record["method"]) not in ("trained", "")


def features(method: str) -> str:
    """What the last layer of a method is fitted to; nothing if the method is not known."""
    name = re.split("[:,]", method)[0]
    return METHODS[name].features if name in METHODS else ""


def setting(record: Record) -> tuple[str, str, float]:
    """Stream, data and learning rate."""
    return record["scenario"], record["data"], record["lr"]


def table(group: Sequence[Record]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of one setting, with the kind of features, and with reported values if there are any."""
    known = reported(group)
    shown = []
    for line in cells(group):
        value = (f"{known[line[0]]:.3f}" if line[0] in known else "",) if known else ()
        shown.append((line[0], features(line[0]), *line[1:3], *value, *line[3:]))
    first, *rest = headings()
    return (first, "features", *rest[:2], *(("reported",) if known else ()), *rest[2:]), shown


def reported(group: Sequence[Record]) -> dict[str, float]:
    """Reported averages by method, for this setting's stream and data."""
    return REPORTED.get(group[0]["scenario"], {}) if group[0]["data"] == "mnist" else {}


def not_run(group: Sequence[Record]) -> str:
    """The methods without a row where all are compared, with what others report of them."""
    if not compared(group):
        return ""
    there, known = {r["method"].partition(", ")[0] for r in group}, reported(group)
    missing = [
        f"`{method}`" + (f" (reported {known[method]:.3f})" if method in known else "")
        for method in METHODS
        if method not in there
    ]
    return f"Not run: {', '.join(missing)}.\n\n" if missing else ""


def differences(group: Sequence[Record]) -> str:
    """Rows that differ from reported values by more than CLOSE, in points, with the reason."""
    stream, known, far = group[0]["scenario"], reported(group), []

    for r in rows(group):
        mean, error = r.estimates["average"]
        difference = mean - known.get(r.method, mean)
        if abs(difference) > CLOSE:
            why = DIFFERENT.get((stream, r.method)) or by_chance(difference, error)
            far.append(f"- `{r.method}` {100 * difference:+.1f}: {why}.\n")
    return f"Further than {100 * CLOSE:g} points from what is reported:\n\n{''.join(far)}\n" if far else ""


def by_chance(difference: float, error: float) -> str:
    """Whether a difference can be explained by the seeds.

    >>> by_chance(0.03, math.nan), by_chance(0.03, 0.02), by_chance(0.03, 0.01)
    ('one seed', 'less than two standard errors over seeds', 'no reason known')
    """
    if math.isnan(error):
        return "one seed"
    return "less than two standard errors over seeds" if abs(difference) < 2 * error else "no reason known"


def compared(group: Sequence[Record]) -> bool:
    """Whether all methods are compared in this setting."""
    return group[0]["data"] == "mnist" and group[0]["scenario"] in COMPARED


def source(records: Sequence[Record]) -> str:
    """The commands that reproduce a table's records, and their provenance."""
    steps: dict[int, list[Record]] = {}
    for record in records:
        steps.setdefault(record["steps"], []).append(record)
    commits = ", ".join(sorted({r["commit"][:8] for r in records}))
    machines = "; ".join(sorted({str(r["hardware"]["cpu"]) for r in records}))
    versions = ", ".join(f"{name} {number}" for name, number in records[0]["versions"].items())
    made = f"Commit {commits}; {machines}, one thread, other work beside: seconds are rough; {versions}."
    return "".join(f"`{command(some)}`\n\n" for some in steps.values()) + f"{made}\n"


def command(records: Sequence[Record]) -> str:
    """The command that reproduces records of one setting."""
    first = records[0]
    methods = dict.fromkeys(r["method"].partition(", ")[0] for r in records)
    seeds = dict.fromkeys(str(r["seed"]) for r in records)
    return (
        f"python -m experiments.continual --stream {first['scenario']} --data {first['data']} --steps {first['steps']} "
        f"--lr {first['lr']:g} --methods {' '.join(methods)} --seeds {' '.join(seeds)}"
    )
