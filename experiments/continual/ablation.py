"""What each part of SAL is worth: variants of it side by side, a row each, over several streams."""

from collections.abc import Iterable

from experiments.continual.methods import METHODS, parse
from experiments.continual.results import rows
from experiments.continual.streams import STREAMS
from experiments.filing import Record
from experiments.pages import grid

ABOUT = """\
## What each part of SAL is worth

Written by `python -m experiments.continual --ablation`, not by hand. *Average*: accuracy over all tasks after the last.
*Learned*: on each task when it was just learned. A variant is named as `--methods` takes it: by an option of
`SALCallback`, or by a constant and the module that it stands in."""
SHOWN = {"average": "average", "just_learned": "learned"}


def markdown(records: Iterable[Record]) -> str:
    """All records as tables, one for each kind of pictures and number of steps."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record["data"], record["steps"]), []).append(record)
    parts = [
        f"### {data}, {steps} steps a task\n\n{grid(*table(group))}\n{source(group)}"
        for (data, steps), group in groups.items()
    ]
    return "\n".join([f"{ABOUT}\n", *parts])


def table(records: Iterable[Record]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: the two measures on each stream, mean ± standard error over seeds; blank where not run."""
    streams: dict[str, list[Record]] = {}
    for record in records:
        streams.setdefault(record["scenario"], []).append(record)
    names, order = [name for name in STREAMS if name in streams], list(METHODS)
    made = {(name, row.method): row.estimates for name in names for row in rows(streams[name])}
    methods = sorted({method for _, method in made}, key=lambda method: (order.index(parse(method)[0]), method))
    cells = [
        (method, *(str(made[name, method][c]) if (name, method) in made else "" for name in names for c in SHOWN))
        for method in methods
    ]
    return ("method", *(f"{name}, {heading}" for name in names for heading in SHOWN.values())), cells


def source(records: list[Record]) -> str:
    """How to get a table's records again: a command a stream."""
    keys = ("data", "steps", "seed", "method", "scenario", "commit")
    data, steps, seeds, methods, streams, commits = (list(dict.fromkeys(str(r[key]) for r in records)) for key in keys)
    command = (
        f"python -m experiments.continual --data {data[0]} --steps {steps[0]} --seeds {' '.join(seeds)} "
        f"--methods {' '.join(methods)} --stream"
    )
    return f"`{command}` with {' '.join(streams)} in turn. Commit {', '.join(c[:8] for c in commits)}.\n"
