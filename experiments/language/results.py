"""The tables of a page: all strengths of all methods, and the methods at equal loss."""

from collections.abc import Sequence
from statistics import fmean

from experiments.continual.metrics import estimate
from experiments.filing import Record
from experiments.language.curves import (
    BASELINE,
    GRID,
    Curve,
    Reading,
    curves,
    grid_of,
    name,
    point,
    reading,
    tested,
)
from experiments.language.methods import METHODS
from experiments.language.settings import LR, Scale
from experiments.pages import grid

NOTE = """\
Loss in nats a byte on text that nothing was trained or chosen on, mean ± standard error over seeds. *Forgotten*: loss
on {first} after the second stage less that after the first. *Strength*: of `plain` its learning rate, of `lora` its
rank; others train at {lr:g} unless their name says otherwise. *Again*, *then* and *mean then*, of the two: after the
third stage, for which `l2` and `ewc` still pull to the weights of the first. *Weights*: those trained after the first
stage.
"""
MATCHED = """\
Forgotten on {first} where the loss reached on {second} is the same (between two strengths, along a straight line), and
as a multiple of what a lower learning rate forgets there; blank where the strengths that were run do not come.
"""


def headings(first: str, second: str) -> tuple[str, ...]:
    """Headings of the table of all strengths."""
    return (
        *("method", "strength", "seeds", f"{first} forgotten", f"{second} reached"),
        *(f"{first} again", f"{second} then", "mean then", "weights", "seconds", "events"),
    )


def domains(records: Sequence[Record]) -> tuple[str, str]:
    """Names of the domains."""
    first, second = records[0]["losses"][0]
    return first, second


def cells(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """One row per strength."""
    groups: dict[tuple[str, float], list[Record]] = {}
    for r in records:
        groups.setdefault((name(r), r["settings"]["strength"]), []).append(r)
    return [(n, f"{strength:g}", *numbers(group)) for (n, strength), group in groups.items()]


def numbers(group: Sequence[Record]) -> tuple[str, ...]:
    """The remaining cells of a row: values over seeds."""
    last = [tested(r)[2] for r in group]
    losses = (
        [point(r).forgotten for r in group],
        [point(r).reached for r in group],
        *([after[i] for after in last] for i in (0, 1)),
        [fmean(after) for after in last],
    )
    counts = ([float(sum(r["seconds"])) for r in group], [float(len(r["events"])) for r in group])
    seconds, events = (estimate(values).mean for values in counts)
    weights = f"{group[0]['learning'] / 1000:.0f} k"
    return (str(len(group)), *(str(estimate(values)) for values in losses), weights, f"{seconds:.0f}", f"{events:g}")


def not_run(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """A row for each method without records."""
    blank = ("",) * (len(headings("", "")) - 2)
    return [(m, "not run", *blank) for m in METHODS if all(r["settings"]["method"] != m for r in records)]


def matched(records: Sequence[Record]) -> str:
    """The table of methods at equal loss; empty without a baseline."""
    return at_equal_loss(curves(records), BASELINE)


def at_equal_loss(found: dict[str, dict[int, Curve]], baseline: str, distance: float = GRID) -> str:
    """The table of curves at multiples of a distance; empty without the baseline."""
    if baseline not in found or not (at := grid_of(found[baseline], distance)):
        return ""
    rows = [[n, *(cell(reading(seeds, found[baseline], x)) for x in at)] for n, seeds in found.items()]
    return grid(["method", *(f"at {x:g}" for x in at)], rows)


def cell(found: Reading | None) -> str:
    """A cell as text; empty for None."""
    return "" if found is None else f"{found.forgotten} (× {found.ratio.mean:.2f})"


def source(records: Sequence[Record]) -> str:
    """The command that reproduces the records, and their provenance."""
    methods, seeds = (list(dict.fromkeys(str(r["settings"][key]) for r in records)) for key in ("method", "seed"))
    form = scale(records).form
    command = f"python -m experiments.language {form} --methods {' '.join(methods)} --seeds {' '.join(seeds)}"
    return f"`{command}`; each record holds its own, such as `{records[0]['command']}`.\n\n{origins(records)}"


def origins(records: Sequence[Record]) -> str:
    """Commits, machines, versions and texts of the records."""
    commits = ", ".join(sorted({r["commit"][:8] for r in records}))
    machines = "; ".join(sorted({str(r["hardware"].get("gpu", r["hardware"]["cpu"])) for r in records}))
    versions = ", ".join(f"{package} {number}" for package, number in records[0]["versions"].items())
    texts = ", ".join(sorted({f"{text} md5 {md5}" for r in records for text, md5 in r["data"].items()}))
    return f"Commit {commits}; {machines}; {versions}; {texts}.\n"


def scale(records: Sequence[Record]) -> Scale:
    """The scale of the records, of which a page has only one."""
    return Scale(*records[0]["settings"]["scale"])


def size(of: Scale) -> str:
    """The scale in words."""
    stages = ", ".join(map(str, of.steps))
    return (
        f"A transformer on bytes: {of.layers} layers of width {of.width}, context {of.context}, stages of {stages} "
        f"steps with {of.batch} rows each."
    )


def markdown(records: Sequence[Record], figure: str = "") -> str:
    """Both tables under a heading."""
    first, second = domains(records)
    kind = "small language model" if scale(records).small else "language model"
    said, note = MATCHED.format(first=first, second=second), NOTE.format(first=first, lr=LR)
    command = f"python -m experiments.language {scale(records).form} --out results/language --from-records --table"
    picture = f"![What is kept of {first} against what is learned of {second}]({figure})\n\n" if figure else ""
    return (
        f"## A {kind}: {first}, then {second}, then {first} again\n\n"
        f"Written by `{command}`, not by hand.\n\n"
        f"{size(scale(records))}\n\n{picture}### At the same loss on {second}\n\n{said}\n{matched(records)}\n"
        f"### Every strength\n\n{note}\n"
        f"{grid(headings(first, second), [*cells(records), *not_run(records)])}\n{source(records)}"
    )
