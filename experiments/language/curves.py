"""The curve that the strengths of a method make, and what two curves say at the same loss."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from experiments import filing
from experiments.continual.metrics import Estimate, estimate
from experiments.filing import Record
from experiments.language.methods import METHODS
from experiments.language.protocol import Result
from experiments.language.settings import LR, Scale

BASELINE = "plain"
GRID = 0.1  # nats from one matched loss to the next


class Point(NamedTuple):
    """One run: the loss reached on the second domain, and the loss added on the first."""

    reached: float
    forgotten: float


Curve = Sequence[Point]  # of one method and seed, by what was reached


def save(result: Result, folder: Path) -> None:
    """Write the record, whole or not at all."""
    filing.save(result.record(), folder / f"{result.settings.name}.json")


def read_all(folder: Path, scale: Scale, text: str) -> list[Record]:
    """Every record of this scale and first domain, in the order of methods, strengths and seeds."""
    wanted = json.loads(json.dumps([scale, text]))
    found = filing.read_all(folder)
    return sorted((r for r in found if [r["settings"]["scale"], r["settings"]["text"]] == wanted), key=place)


def place(record: Record) -> tuple[int, str, float, int]:
    """Where a record stands in a table."""
    s = record["settings"]
    return list(METHODS).index(s["method"]), name(record), s["strength"], s["seed"]


def name(record: Record) -> str:
    """The curve that a record belongs to."""
    s = record["settings"]
    return s["method"] if s["method"] == BASELINE or s["lr"] == LR else f"{s['method']} at {s['lr']:g}"


def tested(record: Record) -> list[list[float]]:
    """Losses on the tests, after each stage: of the first domain, of the second."""
    return [[parts["test"] for parts in stage.values()] for stage in record["losses"]]


def point(record: Record) -> Point:
    """A record's place on its curve."""
    (before, _), (after, reached), _ = tested(record)
    return Point(reached, after - before)


def curves(records: Iterable[Record]) -> dict[str, dict[int, Curve]]:
    """By name, then by seed."""
    points: dict[str, dict[int, list[Point]]] = {}
    for r in records:
        points.setdefault(name(r), {}).setdefault(r["settings"]["seed"], []).append(point(r))
    return {n: {seed: sorted(curve) for seed, curve in seeds.items()} for n, seeds in points.items()}


def forgotten_at(curve: Curve, reached: float) -> float:
    """Along the straight lines between its points; NaN where the curve does not come.

    >>> curve = [Point(1.0, 0.8), Point(2.0, 0.4)]
    >>> round(forgotten_at(curve, 1.25), 3), forgotten_at(curve, 2.5)
    (0.7, nan)
    """
    for a, b in pairwise(curve):
        if a.reached <= reached <= b.reached:
            part = (reached - a.reached) / (b.reached - a.reached) if b.reached > a.reached else 0.5
            return a.forgotten + part * (b.forgotten - a.forgotten)
    return math.nan


def grid_of(baseline: dict[int, Curve]) -> list[float]:
    """The round losses that the baseline reaches with every seed."""
    least = max(curve[0].reached for curve in baseline.values())
    most = min(curve[-1].reached for curve in baseline.values())
    return [round(n * GRID, 9) for n in range(math.ceil(least / GRID), math.floor(most / GRID) + 1)]


class Reading(NamedTuple):
    """At one loss on the second domain: what was forgotten, and as a multiple of what the baseline forgot."""

    forgotten: Estimate
    ratio: Estimate


def reading(seeds: dict[int, Curve], baseline: dict[int, Curve], reached: float) -> Reading | None:
    """Over the seeds that both have; None if one of these curves does not come there."""
    pairs = [(forgotten_at(seeds[s], reached), forgotten_at(baseline[s], reached)) for s in seeds if s in baseline]
    if not pairs or any(math.isnan(x) for pair in pairs for x in pair):
        return None
    return Reading(estimate([mine for mine, _ in pairs]), estimate([mine / theirs for mine, theirs in pairs]))
