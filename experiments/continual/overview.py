"""The tables of the front page: every method on every stream, and details of SAL."""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from experiments.continual.methods import METHODS
from experiments.continual.results import COMPARED, compared, rows
from experiments.continual.streams import FUZZY
from experiments.filing import Record
from experiments.pages import grid

CLOSER = {"worst": "worst task", "just_learned": "when just learned", "drift": "feature drift"}


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


def overview(records: Iterable[Record]) -> str:
    """The average of each method on the streams that all of them were run on, then SAL and plain training there."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        if compared([r]):
            groups.setdefault((r["scenario"], r["method"]), []).append(r)
    ran = [m for m in METHODS if any(m == method for _, method in groups)]
    streams = [s for s in COMPARED if all((s, m) in groups for m in ran)]
    made = {key: rows(group)[0].estimates for key, group in groups.items()}
    averages = [(m, METHODS[m].told, *(str(made[s, m]["average"]) for s in streams)) for m in ran]
    closer = []
    for s in streams:
        for m in ("plain", "sal"):
            seen = found(groups[s, m])
            changes = "not looked for" if m == "plain" else f"{seen.found} of {seen.changes}, {seen.false} false"
            closer.append((s, m, *(str(made[s, m][c]) for c in CLOSER), changes))
    heads = ("stream", "method", *CLOSER.values(), "changes found")
    return f"{grid(('method', 'is told, or keeps', *streams), averages)}\n{grid(heads, closer)}"
