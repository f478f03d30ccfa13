"""A figure of what is forgotten against what is learned: one line per method."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.continual.metrics import estimate
from experiments.figure import COLORS, FAINT, INK
from experiments.filing import Record
from experiments.language.curves import BASELINE, Curve, Point, name, point
from experiments.language.results import domains

LINES = COLORS | {
    "l2": "#b3541e",
    "ewc": "#7a9a01",
    "lora": "#8b5fbf",
    "sal-remember": "#4fa3c7",
    "sal-lora": "#c2417c",
}


def means(records: Sequence[Record]) -> dict[str, list[Point]]:
    """For each curve, each strength's mean over seeds, in the order of strengths."""
    groups: dict[str, dict[float, list[Point]]] = {}
    for r in records:
        groups.setdefault(name(r), {}).setdefault(r["settings"]["strength"], []).append(point(r))
    return {n: [mean(points) for points in strengths.values()] for n, strengths in groups.items()}


def mean(points: Sequence[Point]) -> Point:
    """The mean of points."""
    return Point(estimate([p.reached for p in points]).mean, estimate([p.forgotten for p in points]).mean)


class Line(NamedTuple):
    """A line of the figure; without a label it is not in the legend."""

    points: Curve
    label: str | None
    color: str
    style: str = "-"


def draw(records: Sequence[Record], file: Path) -> None:
    """Write the figure of the two domains."""
    first, second = domains(records)
    lines = [
        Line(points, n, LINES[n.split()[0]], ":" if n == BASELINE else "-") for n, points in means(records).items()
    ]
    trade_off(lines, f"loss on {second} after the second stage, nats a byte", f"loss added on {first}", file)


def trade_off(lines: Iterable[Line], learned: str, forgotten: str, file: Path) -> None:
    """Write a figure with these labels of its axes."""
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    axes = figure.subplots()
    for line in lines:
        x, y = zip(*line.points, strict=True)
        axes.plot(x, y, line.style, marker="o", markersize=4, color=line.color, label=line.label)
    axes.set_xlabel(learned, color=INK)
    axes.set_ylabel(forgotten, color=INK)
    axes.set_title("lower left is better: more learned, less forgotten", fontsize=9, color=INK, loc="left")
    axes.legend(frameon=False, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
