"""The goals, and the measured values."""

from collections.abc import Iterator

from experiments.detection.protocol import delays, false_alarms
from experiments.networks.networks import NAMES
from experiments.networks.results import Group, cell, heard
from experiments.networks.streams import STREAMS

WITHIN = 20  # largest delay of a detection in steps
POINTS = 0.02  # largest loss of SAL without known task ends
SAME = 0.01  # largest difference between training and evaluation mode
BRIGHTER = 0.95  # smallest accuracy on old images after the change
BATCH_NORM = ("convnet-batchnorm", "convnet-separable", "resnet")
GOALS = ("what", "goal", "reached", "")


def verdict(good: bool) -> str:
    """``met`` or ``missed``."""
    return "met" if good else "missed"


def changes(groups: Group) -> Iterator[tuple[str, ...]]:
    """Goals of detection: all changes within WITHIN steps, and no false alarms."""
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
    """Difference of a (network, method) to another on each stream, for the old and the new task, and its place."""
    for network in NAMES:
        for stream in STREAMS:
            pair = [(name or network, stream, method) for name, method in (one, other)]
            if all(place in groups for place in pair):
                above, below = (cell(groups[place]) for place in pair)
                yield above.old - below.old, f"{network}, {stream}, old"
                yield above.new - below.new, f"{network}, {stream}, new"


def comparisons(groups: Group) -> Iterator[tuple[str, ...]]:
    """Goals of comparisons: with known task ends, and of training and evaluation mode."""
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
