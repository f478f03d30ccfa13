"""Reads a logged run from the folder of a CSV logger, or from an offline file of Weights & Biases."""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sal_lightning.report.histograms import BINS, banded
from sal_lightning.report.naming import PREFIX, prefix
from sal_lightning.report.wandb_file import history

CSV, WANDB, CASCADE = "metrics.csv", "run-*.wandb", "cascade.json"
FEATURES = f"{PREFIX}feature_"  # values of a ``DriftMonitor``, independent of the callback's name
SHOWN = 5  # largest number of runs named in an error


class Series(NamedTuple):
    """Values over SAL's steps, in ascending order."""

    steps: list[float]
    values: list[float]


class Run(NamedTuple):
    """Values that a run logged under ``sal/``; names are without this prefix."""

    name: str
    series: dict[str, Series]
    events: list[float]  # steps of consolidations
    cascade: dict[str, Any] | None = None  # see ``flow.record``

    def last(self, name: str) -> float | None:
        """The last value of this name, or None."""
        return self.series[name].values[-1] if name in self.series else None

    def layers(self) -> list[str]:
        """Names of the layers in natural order (2 before 10), as loggers do not keep the order of the network."""
        parts = (name.split("/") for name in self.series if name.startswith("layers/"))
        return sorted({"/".join(part[1:-2]) for part in parts}, key=_counted)


def read(places: Sequence[Path], callback: str = "") -> Run:
    """Read a run.

    Args:
        places: folders or files; several are successive fits of one training.
        callback: the callback's name, if it has one.

    Raises:
        FileNotFoundError: there is no run in a place.
        ValueError: a place contains several runs, or no run has values of SAL.
    """
    files = [find(place) for place in places]
    points: dict[str, dict[float, float]] = {}
    for row in (row for file in files for row in rows(file, prefix(callback))):
        at = row.get("step", row.get("feature_at"))
        for name, value in row.items():
            key = value if name == "consolidated_at" else at
            if key is not None:
                points.setdefault(name, {})[key] = value
    if not points:
        raise ValueError(
            f"Expected a run with values named {prefix(callback)}…, got none in {', '.join(map(str, files))}."
        )
    events = sorted(points.pop("consolidated_at", {}))
    series = {name: Series(*map(list, zip(*sorted(of.items()), strict=True))) for name, of in points.items()}
    cascades = [file.parent / CASCADE for file in files if (file.parent / CASCADE).is_file()]
    cascade = json.loads(cascades[-1].read_text(encoding="utf-8")) if cascades else None
    return Run(_name(places[0]), series, events, cascade)


def find(place: Path) -> Path:
    """The file of the run at this path, or in this folder or its subfolders.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the folder contains several runs.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise FileNotFoundError(f"Expected the folder or file of a run, got {place}, which does not exist.")
    if (place / CSV).is_file():
        return place / CSV
    # Weights & Biases adds a symlink to its latest run.
    found = sorted({file.resolve() for pattern in (CSV, WANDB) for file in place.rglob(pattern)})
    if not found:
        raise FileNotFoundError(f"Expected a {CSV} or a {WANDB} in {place}, got neither.")
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(place.resolve()).parent) for file in found[:SHOWN])
        more = "" if len(found) <= SHOWN else f" and {len(found) - SHOWN} more"
        raise ValueError(f"Expected one run in {place}, got {names}{more}: pass the path of one of them.")
    return found[0]


def rows(file: Path, own: str = PREFIX) -> Iterator[dict[str, float]]:
    """Rows as finite numbers by name, without epoch means and values not logged by SAL."""
    for row in _csv(file) if file.suffix == ".csv" else map(_unfold, history(file)):
        named = ((_plain(name, own), value) for name, value in row.items())
        kept = {name: value for name, value in named if name and math.isfinite(value)}
        if kept:
            yield kept


def _csv(file: Path) -> Iterator[dict[str, float]]:
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            yield {name: float(text) for name, text in row.items() if text and name.startswith(PREFIX)}


def _plain(name: str, own: str = PREFIX) -> str:
    """The name of a value without prefix and suffix; empty for values not logged by SAL, and for epoch means.

    Lightning adds the suffixes to values that are logged per step and per epoch, as earlier versions did.

    >>> _plain("sal/effect_step"), _plain("sal/effect_epoch"), _plain("sal/step"), _plain("loss")
    ('effect', '', 'step', '')
    """
    if not name.startswith((own, FEATURES)) or name.endswith("_epoch"):
        return ""
    return name.removeprefix(own).removeprefix(PREFIX).removesuffix("_step")


def _unfold(row: dict[str, Any]) -> dict[str, float]:
    """Keep numbers, and convert histograms to percentages of the bands."""
    media = {name.removesuffix("/_type") for name in row if name.endswith("/_type")}
    plain = {name: value for name, value in row.items() if name.rpartition("/")[0] not in media}
    numbers = {name: value for name, value in plain.items() if isinstance(value, int | float)}
    for name, counts in row.items():
        layer, _, part = name.rpartition("/")
        if part == "values" and isinstance(counts, list) and len(counts) == BINS:
            numbers |= {f"{layer}/{band}": percent for band, percent in banded(counts)._asdict().items()}
    return numbers


def _counted(name: str) -> list[tuple[str, int]]:
    """Sort key for natural order, in which numbers are compared by value."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _name(place: Path) -> str:
    """The last two parts of the path, as loggers number the folders of their runs."""
    whole = place.resolve()
    folder: Iterable[str] = (whole.parent if whole.is_file() else whole).parts[-2:]
    return "/".join(folder)
