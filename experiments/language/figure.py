"""A figure of forgetting of the first domain against learning of the second: one line per method."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.continual.metrics import estimate
from experiments.figure import COLORS, FAINT, INK
from experiments.filing import Record
from experiments.language.curves import BASELINE, Point, name, point
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


def draw(records: Sequence[Record], file: Path) -> None:
    """Write the figure."""
    first, second = domains(records)
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    axes = figure.subplots()
    for n, points in means(records).items():
        style = ":" if n == BASELINE else "-"
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=LINES[n.split()[0]], label=n)
    axes.set_xlabel(f"loss on {second} after the second stage, nats a byte", color=INK)
    axes.set_ylabel(f"loss added on {first}", color=INK)
    axes.set_title("lower left is better: more learned, less forgotten", fontsize=9, color=INK, loc="left")
    axes.legend(frameon=False, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
