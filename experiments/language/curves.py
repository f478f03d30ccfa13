"""Curves of a method over its strengths, and comparison of two curves at equal loss."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from experiments import filing
from experiments.continual.metrics import Estimate, estimate
from experiments.filing import Record
from experiments.language.methods import METHODS
from experiments.language.protocol import Result
from experiments.language.settings import LR, Scale

BASELINE = "plain"
GRID = 0.1  # distance of matched losses in nats


class Point(NamedTuple):
    """One run: the loss on the second domain, and the increase of the loss on the first."""

    reached: float
    forgotten: float


Curve = Sequence[Point]  # of one method and seed, see ``envelope``


def save(result: Result, folder: Path) -> None:
    """Write the record atomically."""
    filing.save(result.record(), folder / f"{result.settings.name}.json")


def read_all(folder: Path, scale: Scale, text: str) -> list[Record]:
    """All records of this scale and first domain, in the order of methods, strengths and seeds."""
    wanted = json.loads(json.dumps([scale, text]))
    found = filing.read_all(folder)
    return sorted((r for r in found if [r["settings"]["scale"], r["settings"]["text"]] == wanted), key=place)


def place(record: Record) -> tuple[int, str, float, int]:
    """Sort key of a record in a table."""
    s = record["settings"]
    return list(METHODS).index(s["method"]), name(record), s["strength"], s["seed"]


def name(record: Record) -> str:
    """Name of the curve that a record belongs to."""
    s = record["settings"]
    return s["method"] if s["method"] == BASELINE or s["lr"] == LR else f"{s['method']} at {s['lr']:g}"


def tested(record: Record) -> list[list[float]]:
    """Test losses after each stage, on the first and on the second domain."""
    return [[parts["test"] for parts in stage.values()] for stage in record["losses"]]


def point(record: Record) -> Point:
    """A record as a point of its curve."""
    (before, _), (after, reached), _ = tested(record)
    return Point(reached, after - before)


def curves(records: Iterable[Record]) -> dict[str, dict[int, Curve]]:
    """Curves by name, then by seed."""
    points: dict[str, dict[int, list[Point]]] = {}
    for r in records:
        points.setdefault(name(r), {}).setdefault(r["settings"]["seed"], []).append(point(r))
    return {n: {seed: envelope(curve) for seed, curve in seeds.items()} for n, seeds in points.items()}


def envelope(points: Iterable[Point]) -> list[Point]:
    """The points, sorted; a point that one with a lower loss beats gets its forgetting: strengths are chosen well.

    >>> envelope([Point(2.0, 0.4), Point(1.0, 0.3), Point(0.9, 0.8)])
    [Point(reached=0.9, forgotten=0.8), Point(reached=1.0, forgotten=0.3), Point(reached=2.0, forgotten=0.3)]
    """
    ordered = sorted(points)
    least = accumulate((one.forgotten for one in ordered), min)
    return [Point(one.reached, forgotten) for one, forgotten in zip(ordered, least, strict=True)]


def forgotten_at(curve: Curve, reached: float) -> float:
    """Forgetting at a loss, by linear interpolation between points; NaN outside the curve's range.

    >>> curve = [Point(1.0, 0.8), Point(2.0, 0.4)]
    >>> round(forgotten_at(curve, 1.25), 3), forgotten_at(curve, 2.5)
    (0.7, nan)
    """
    for a, b in pairwise(curve):
        if a.reached <= reached <= b.reached:
            part = (reached - a.reached) / (b.reached - a.reached) if b.reached > a.reached else 0.5
            return a.forgotten + part * (b.forgotten - a.forgotten)
    return math.nan


def grid_of(baseline: dict[int, Curve], distance: float = GRID) -> list[float]:
    """Multiples of a distance in the baseline's range of losses with every seed."""
    least = max(curve[0].reached for curve in baseline.values())
    most = min(curve[-1].reached for curve in baseline.values())
    return [round(n * distance, 9) for n in range(math.ceil(least / distance), math.floor(most / distance) + 1)]


class Reading(NamedTuple):
    """Forgetting at one loss on the second domain, absolute and relative to the baseline's."""

    forgotten: Estimate
    ratio: Estimate


def reading(seeds: dict[int, Curve], baseline: dict[int, Curve], reached: float) -> Reading | None:
    """Means over the common seeds; None if the loss is outside of the range of one of these curves."""
    pairs = [(forgotten_at(seeds[s], reached), forgotten_at(baseline[s], reached)) for s in seeds if s in baseline]
    if not pairs or any(math.isnan(x) for pair in pairs for x in pair):
        return None
    return Reading(estimate([mine for mine, _ in pairs]), estimate([mine / theirs for mine, theirs in pairs]))
