"""The tables of the front page: methods on the split streams, and SAL beside plain training on every stream."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from experiments.continual.methods import METHODS
from experiments.continual.metrics import Estimate
from experiments.continual.results import COMPARED, compared, rows
from experiments.continual.streams import FUZZY
from experiments.filing import Record
from experiments.pages import grid

SPLITS = ("split-task", "split-domain", "split-class")
PAIR = ("plain", "sal")
CLOSER = {
    "average": "average",
    "worst": "worst task",
    "just_learned": "when just learned",
    "drift": "feature drift",
}
Averages = dict[tuple[str, str], Estimate]  # by stream and method


class Found(NamedTuple):
    """Consolidations of runs compared with the changes of task."""

    found: int
    changes: int
    false: int


def found(records: Iterable[Record], within: int = 20) -> Found:
    """Changes with a consolidation at most ``within`` steps later, all changes, and consolidations without a change.

    A gradual change lasts from the first mixed batch to the last one.

    >>> record = {"scenario": "split-domain", "R": [[1.0]] * 3, "steps": 100, "events": [103, 150, 202]}
    >>> found([record]), found([record | {"scenario": "split-domain-fuzzy"}])
    (Found(found=2, changes=2, false=1), Found(found=2, changes=2, false=1))
    >>> found([record | {"scenario": "split-domain-fuzzy", "events": [80, 103, 180]}])
    Found(found=2, changes=2, false=0)
    """
    hits = changes = strays = 0
    for r in records:
        mixed = FUZZY * r["steps"] if r["scenario"].endswith("-fuzzy") else 0
        ends = [r["steps"] * task for task in range(1, len(r["R"]))]
        near = [[event for event in r["events"] if 0 < event - end + mixed <= 2 * mixed + within] for end in ends]
        hits += sum(map(bool, near))
        changes, strays = changes + len(ends), strays + len(set(r["events"]) - set(chain(*near)))
    return Found(hits, changes, strays)


def averages(records: Iterable[Record]) -> tuple[tuple[str, ...], list[str], Averages]:
    """The split streams, the methods that were run on all of them, and the average of each."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        if r["scenario"] in SPLITS and compared([r]):
            groups.setdefault((r["scenario"], r["method"]), []).append(r)
    longest = {key: max(r["steps"] for r in group) for key, group in groups.items()}
    made = {
        key: rows([r for r in group if r["steps"] == longest[key]])[0].estimates["average"]
        for key, group in groups.items()
    }
    return SPLITS, [m for m in METHODS if all((stream, m) in made for stream in SPLITS)], made


def overview(records: Sequence[Record]) -> str:
    """Two tables without blank cells: methods on the split streams, and SAL beside plain training on every stream."""
    streams, methods, found_averages = averages(records)
    first = [(m, METHODS[m].told, METHODS[m].features, *(str(found_averages[s, m]) for s in streams)) for m in methods]
    second = []
    for stream in COMPARED:
        both = [[r for r in records if (r["scenario"], r["method"]) == (stream, m) and compared([r])] for m in PAIR]
        if all(both):
            pairs = zip(*(rows(group)[0].cells(CLOSER)[2:-2] for group in both), strict=True)
            seen = found(both[1])
            changes = f"{seen.found} of {seen.changes}, {seen.false} false"
            second.append((stream, *(f"{plain} / {sal}" for plain, sal in pairs), changes))
    heads = ("stream, plain / sal", *CLOSER.values(), "changes found")
    return f"{grid(('method', 'is told, or keeps', 'features', *streams), first)}\n{grid(heads, second)}"
