"""Ablation of SAL: its variants on several streams, one row each."""

from collections.abc import Iterable, Mapping, Sequence

from experiments.continual.methods import METHODS, parse
from experiments.continual.results import rows, source
from experiments.continual.streams import STREAMS
from experiments.filing import Record
from experiments.pages import grid

ABOUT = """\
## What each part of SAL is worth

Written by `python -m experiments.continual --out results/ablation --from-records --ablation`, not by hand. *Average*:
accuracy over all tasks after the last. *Learned*: on each task when it was just learned. A variant is named as
`--methods` takes it: by an option of `SALCallback`, or by a constant and the module that it stands in."""
SHOWN = {"average": "average", "just_learned": "learned"}


def markdown(records: Iterable[Record]) -> str:
    """All records as tables, one per data set, number of steps and learning rate, with each stream's command."""
    groups: dict[tuple[str, int, float], dict[str, list[Record]]] = {}
    for r in sorted(records, key=lambda r: list(STREAMS).index(r["scenario"])):
        groups.setdefault((r["data"], r["steps"], r["lr"]), {}).setdefault(r["scenario"], []).append(r)
    parts = [
        f"### {data}, {steps} steps a task, learning rate {lr:g}\n\n{grid(*table(streams))}\n"
        + "\n".join(map(source, streams.values()))
        for (data, steps, lr), streams in groups.items()
    ]
    return "\n".join([f"{ABOUT}\n", *parts])


def table(streams: Mapping[str, Sequence[Record]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: two measures on each stream, mean ± standard error over seeds; blank if not run."""
    made = {(stream, row.method): row.estimates for stream, records in streams.items() for row in rows(records)}
    order = list(METHODS)
    methods = sorted({method for _, method in made}, key=lambda method: (order.index(parse(method)[0]), method))
    cells = [
        (method, *(str(made[s, method][c]) if (s, method) in made else "" for s in streams for c in SHOWN))
        for method in methods
    ]
    return ("method", *(f"{stream}, {heading}" for stream in streams for heading in SHOWN.values())), cells
