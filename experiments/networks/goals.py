"""What was aimed at, and how far it is reached."""

from collections.abc import Iterator

from experiments.detection.protocol import delays, false_alarms
from experiments.networks.networks import NAMES
from experiments.networks.results import Group, cell, heard
from experiments.networks.streams import STREAMS

WITHIN = 20  # steps in which a change should be found
POINTS = 0.02  # what SAL may lose by not being told
SAME = 0.01  # what the mode of training may matter
BRIGHTER = 0.95  # of old images, after the change
BATCH_NORM = ("convnet-batchnorm", "convnet-separable", "resnet")
GOALS = ("what", "goal", "reached", "")


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
