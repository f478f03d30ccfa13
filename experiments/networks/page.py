"""The tables: results compared with the goals, then a row per network for each stream."""

from collections.abc import Iterator, Sequence

from experiments.detection.protocol import delays, false_alarms
from experiments.filing import Record
from experiments.networks.goals import GOALS, changes, comparisons
from experiments.networks.networks import MOBILENET, NAMES
from experiments.networks.protocol import FASHION, METHODS, Run
from experiments.networks.results import Group, cell, grouped, heard
from experiments.pages import grid

HEADINGS = ("network", "seeds", "found", "delay", "false alarms", "learned", *METHODS, "warned")
SHORT = ("network", "found", "delay", "false alarms", "plain", "sal", "told")  # of them, in a terminal
OPTIONS = {"network": "networks", "stream": "streams", "method": "methods", "seed": "seeds"}  # fields as options
NOTE = """\
Written by `python -m experiments.networks --from-records --table`, not by hand.

Networks of many kinds on streams whose data change; all have a single head of ten classes, and Adam with a learning
rate of 0.001. MobileNetV2, with weights pre-trained on ImageNet, is trained whole on Fashion-MNIST instead of MNIST, at
0.0001, with one seed and on four of the streams. *plain*: without SAL.
*sal*: `SALCallback()`, told nothing. *told*: the same, but consolidated where tasks end, and only there. *joint*: all
tasks at once. Each column of these is the accuracy on the tasks before the last / on the last one, at the end;
*learned* is that of *sal* on the tasks before the last when each was just learned. The denoiser has the share of the
noise's variance that it explains instead. *Found*: changes that were believed before the next one. *Delay*: steps with
the new data until then, from the shortest to the longest. *Warned*: what SAL itself said that it cannot do.
Means over seeds; plain and joint training, and the stationary stream, have one seed. `mlp-eval` is trained in
evaluation mode.
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


def rows(groups: Group, stream: str) -> Iterator[tuple[str, ...]]:
    """A row per network, under HEADINGS; blank where there is no run."""
    for network in NAMES:
        found = {m: groups[network, stream, m] for m in METHODS if (network, stream, m) in groups}
        if found:
            sal = found.get("sal", [])
            learned = f"{cell(sal).was:.3f}" if sal else ""
            scores = (str(cell(found[m])) if m in found else "" for m in METHODS)
            warned = ", ".join(sorted({kind for r in sal for kind in r["warned"]}))
            seen = detection(sal) if sal else ("", "", "")
            yield network, str(max(map(len, found.values()))), *seen, learned, *scores, warned


def variants(groups: Group) -> tuple[list[str], list[tuple[str, ...]]]:
    """Headings and rows of methods with options and baselines: old / new on each stream and network."""
    varied = list(dict.fromkeys(method for _, _, method in groups if method not in METHODS))
    places = dict.fromkeys((network, stream) for network, stream, method in groups if method in varied)
    columns = [m for m in METHODS if any((*place, m) in groups for place in places)] + varied
    made = [
        (*place, *(str(cell(groups[*place, m])) if (*place, m) in groups else "" for m in columns)) for place in places
    ]
    return ["network", "stream", *columns], made


def variants_page(records: Sequence[Record]) -> str:
    """The table of variants, and the command that reproduces it."""
    made = grid(*variants(grouped(records)))
    return f"{made}\n{origin(records)}"


def short(row: Sequence[str]) -> list[str]:
    """The cells of a row, under SHORT."""
    return [row[HEADINGS.index(heading)] for heading in SHORT]


def detection(records: Sequence[Record]) -> tuple[str, str, str]:
    """Detected changes out of all, their delays, and false alarms."""
    late = [delay for r in records for delay in delays(heard(r))]
    known = sorted(delay for delay in late if delay is not None)
    span = "" if not known else f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
    return f"{len(known)} of {len(late)}" if late else "", span, str(sum(false_alarms(heard(r)) for r in records))


def page(records: Sequence[Record]) -> str:
    """The goals, a table per stream, and the command that reproduces them."""
    groups = grouped(records)
    goals = [*changes(groups), *comparisons(groups)]
    parts = ["## Networks of many kinds\n", NOTE, grid(GOALS, goals)]
    for stream, about in STREAM.items():
        if made := list(rows(groups, stream)):
            parts.append(f"### {stream}: {about}\n\n{grid(HEADINGS, made)}")
    return "\n".join([*parts, origin(records)])


def origin(records: Sequence[Record]) -> str:
    """The command that reproduces the records, and their provenance."""
    asked = {field: list(dict.fromkeys(str(r[field]) for r in records)) for field in Run._fields}
    asked["data"] = [name for name in asked["data"] if name != FASHION] or asked["data"]  # chosen by MobileNetV2 itself
    command = " ".join(f"--{OPTIONS.get(field, field)} {' '.join(values)}" for field, values in asked.items())
    command += " --weights FOLDER" if MOBILENET in asked["network"] else ""
    commits = ", ".join(sorted({r["commit"][:8] + r["commit"][40:] for r in records}))
    machines = "; ".join(sorted({str(r["hardware"]["cpu"]) for r in records}))
    versions = ", ".join(f"{name} {number}" for name, number in records[0]["versions"].items())
    hours = sum(r["cpu_seconds"] for r in records) / 3600
    return (
        f"`python -m experiments.networks {command}`\n\n"
        f"Commit {commits}; {machines}, one thread a run, {hours:.1f} hours of CPU in all; {versions}.\n"
    )
