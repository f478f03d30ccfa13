"""Results of all runs in one file, a JSON line each; tables of them, and how they compare with what was aimed at."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from experiments.detection.protocol import Heard, delays, false_alarms
from experiments.filing import Record
from experiments.networks.networks import NAMES
from experiments.networks.protocol import FASHION, METHODS, Run, measures
from experiments.networks.streams import STREAMS
from experiments.pages import grid

WITHIN = 20  # steps in which a change should be found
POINTS = 0.02  # what SAL may lose by not being told
SAME = 0.01  # what the mode of training may matter
BRIGHTER = 0.95  # of old images, after the change
BATCH_NORM = ("convnet-batchnorm", "convnet-separable", "resnet")
OPTIONS = {"network": "networks", "stream": "streams", "method": "methods", "seed": "seeds"}  # fields as options
HEADINGS = ("network", "seeds", "found", "delay", "false alarms", "learned", *METHODS, "warned")
SHORT = ("network", "found", "delay", "false alarms", "plain", "sal", "told")  # of them, in a terminal
GOALS = ("what", "goal", "reached", "")
NOTE = """\
Written by `python -m experiments.networks --table`, not by hand.

Networks of many kinds on streams whose data change; all have a single head of ten classes. *plain*: without SAL.
*sal*: `SALCallback()`, told nothing. *told*: the same, but consolidated where tasks end, and only there. *joint*: all
tasks at once. Each column of these is the accuracy on the tasks before the last / on the last one, at the end;
*learned* is that of *sal* on the tasks before the last when each was just learned. The denoiser has the share of the
noise's variance that it explains instead. *Found*: changes that were believed before the next one. *Delay*: steps with
the new data until then, from the shortest to the longest. *Warned*: what SAL itself said that it cannot do.
Means over seeds; plain and joint training have one seed. `mlp-eval` is trained in evaluation mode.
"""
STREAM = {
    "split-two": "classes 0-4, then 5-9, in one fit",
    "split-two-fits": "the same in two fits, with one callback and a new optimizer in each",
    "split-five": "two classes a task",
    "permuted": "the pixels in another order",
    "brighter": "pixels times 2 plus 1.5",
    "labels": "old images with new labels, so that nobody can know both tasks",
    "stationary": "nothing changes",
}


def read(file: Path) -> list[Record]:
    """All runs in the file, the last one where one was run again; a line that was cut short is left out."""
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    records = {key(record): record for record in map(json.loads, lines)}
    return [records[run] for run in sorted(records, key=place)]


def place(run: Run) -> tuple[int, int, int, Run]:
    """Where it stands: networks, streams and methods in the order of their lists, then seeds."""
    streams = list(STREAMS)
    return NAMES.index(run.network), streams.index(run.stream), METHODS.index(run.method), run


def key(record: Record) -> Run:
    """Which run it is."""
    return Run(*(record[field] for field in Run._fields))


def append(record: Record, file: Path) -> None:
    """Write a run in a line of its own, at once; what was cut short before it is dropped."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as opened:
        if opened.tell():
            opened.seek(-1, 2)
            if opened.read(1) != b"\n":
                opened.seek(0)
                opened.truncate(opened.read().rfind(b"\n") + 1)
        opened.write((json.dumps(record, allow_nan=False) + "\n").encode())


# --- what is shown ---


class Cell(NamedTuple):
    """One method on one network and stream, over its seeds."""

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
    """A run as detection counts it."""
    return Heard(tuple(record["changes"]), [0.0] * record["length"], record["events"])


def detection(records: Sequence[Record]) -> tuple[str, str, str]:
    """Changes found of all, how late, and false alarms."""
    late = [delay for r in records for delay in delays(heard(r))]
    known = sorted(delay for delay in late if delay is not None)
    span = "" if not known else f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
    return f"{len(known)} of {len(late)}" if late else "", span, str(sum(false_alarms(heard(r)) for r in records))


Group = dict[tuple[str, str, str], list[Record]]


def grouped(records: Iterable[Record]) -> Group:
    """By network, stream and method."""
    groups: Group = {}
    for r in records:
        groups.setdefault((r["network"], r["stream"], r["method"]), []).append(r)
    return groups


def rows(groups: Group, stream: str) -> Iterator[tuple[str, ...]]:
    """A row a network, under HEADINGS; blank where there is no run."""
    for network in NAMES:
        found = {m: groups[network, stream, m] for m in METHODS if (network, stream, m) in groups}
        if found:
            sal = found.get("sal", [])
            learned = f"{cell(sal).was:.3f}" if sal else ""
            scores = (str(cell(found[m])) if m in found else "" for m in METHODS)
            warned = ", ".join(sorted({kind for r in sal for kind in r["warned"]}))
            seen = detection(sal) if sal else ("", "", "")
            yield network, str(max(map(len, found.values()))), *seen, learned, *scores, warned


def short(row: Sequence[str]) -> list[str]:
    """The cells of a row under SHORT."""
    return [row[HEADINGS.index(heading)] for heading in SHORT]


# --- what was aimed at ---


def verdict(good: bool) -> str:
    """In a word."""
    return "met" if good else "missed"


def changes(groups: Group) -> Iterator[tuple[str, ...]]:
    """Are all changes found, soon, and nothing else?"""
    runs = [r for (_, _, method), group in groups.items() if method == "sal" for r in group]
    late = [delay for r in runs for delay in delays(heard(r))]
    soon = sum(delay is not None and delay <= WITHIN for delay in late)
    if late:
        yield f"changes found within {WITHIN} steps", "all", f"{soon} of {len(late)}", verdict(soon == len(late))
    for what, some in (
        ("where nothing changes", [r for r in runs if not r["changes"]]),
        ("elsewhere", [r for r in runs if r["changes"]]),
    ):
        if some:
            alarms, steps = sum(false_alarms(heard(r)) for r in some), sum(r["length"] for r in some)
            yield f"false alarms {what}", "0", f"{alarms} in {steps:,} steps", verdict(not alarms)


def furthest(groups: Group, one: tuple[str, str], other: tuple[str, str]) -> Iterator[tuple[float, str]]:
    """How far a (network, method) is above another on each stream, the old and the new task apart, and where."""
    for network in NAMES:
        for stream in STREAMS:
            pair = [(name or network, stream, method) for name, method in (one, other)]
            if all(place in groups for place in pair):
                above, below = (cell(groups[place]) for place in pair)
                yield above.old - below.old, f"{network}, {stream}, old"
                yield above.new - below.new, f"{network}, {stream}, new"


def comparisons(groups: Group) -> Iterator[tuple[str, ...]]:
    """Does being told matter, or the mode of training?"""
    if told := list(furthest(groups, ("", "told"), ("", "sal"))):
        gap, where = max(told)
        fine = sum(gap <= POINTS for gap, _ in told)
        reached = f"{fine} of {len(told)}; worst {100 * gap:.1f} ({where})"
        yield f"not told within {100 * POINTS:g} points of told", "all", reached, verdict(gap <= POINTS)
    modes = {
        (abs(gap), where.partition(", ")[2]) for gap, where in furthest(groups, ("mlp", "sal"), ("mlp-eval", "sal"))
    }
    if modes:
        gap, where = max(modes)
        reached = f"worst {100 * gap:.1f} ({where})"
        yield f"evaluation mode within {100 * SAME:g} point of training mode", "all", reached, verdict(gap <= SAME)
    for network in BATCH_NORM:
        if group := groups.get((network, "brighter", "sal")):
            was, old, _ = cell(group)
            reached = f"{old:.3f}, of {was:.3f} when learned"
            yield f"{network}, old after brighter", f"≥ {BRIGHTER}", reached, verdict(old >= BRIGHTER)


def page(records: Sequence[Record]) -> str:
    """The goals, a table a stream, and how to get them again."""
    groups = grouped(records)
    goals = [*changes(groups), *comparisons(groups)]
    parts = ["## Networks of many kinds\n", NOTE, grid(GOALS, goals)]
    for stream, about in STREAM.items():
        if made := list(rows(groups, stream)):
            parts.append(f"### {stream}: {about}\n\n{grid(HEADINGS, made)}")
    return "\n".join([*parts, origin(records)])


def origin(records: Sequence[Record]) -> str:
    """How to get the records again, and what they were made with."""
    asked = {field: list(dict.fromkeys(str(r[field]) for r in records)) for field in Run._fields}
    asked["data"] = [name for name in asked["data"] if name != FASHION] or asked["data"]  # MobileNetV2 takes its own
    command = " ".join(f"--{OPTIONS.get(field, field)} {' '.join(values)}" for field, values in asked.items())
    commits = ", ".join(sorted({r["commit"][:8] + r["commit"][40:] for r in records}))
    machines = "; ".join(sorted({str(r["hardware"]["cpu"]) for r in records}))
    versions = ", ".join(f"{name} {number}" for name, number in records[0]["versions"].items())
    hours = sum(r["cpu_seconds"] for r in records) / 3600
    return (
        f"`python -m experiments.networks {command}`\n\n"
        f"Commit {commits}; {machines}, one thread a run, {hours:.1f} hours of CPU in all; {versions}.\n"
    )
