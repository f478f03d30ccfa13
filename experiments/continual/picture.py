"""A figure of the average accuracy of every method on the split streams: one panel per stream, one row per method."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.continual.methods import METHODS
from experiments.continual.metrics import Estimate
from experiments.continual.overview import Averages, averages
from experiments.figure import COLORS, FAINT, INK, OTHER
from experiments.filing import Record

GREY = COLORS["plain"]
MARKS: dict[str, dict[str, Any]] = {
    "SAL": {"color": COLORS["sal"], "marker": "o"},
    "trained features, told nothing or task ends": {"color": OTHER, "marker": "o"},
    "fixed features, told nothing": {"color": OTHER, "marker": "D", "markerfacecolor": "white"},
    "keeps samples, or has all data at once": {"color": GREY, "marker": "s"},
}


def kind(method: str) -> str:
    """The key of a method's mark."""
    sal, trained, fixed, stored = MARKS
    if method == "sal":
        return sal
    if METHODS[method].features != "trained":
        return fixed
    return stored if "samples" in METHODS[method].told or METHODS[method].joint else trained


def panel(axes: Axes, stream: str, methods: list[str], found: Averages) -> None:
    """Draw one stream: each method's mean, with its standard error over seeds."""
    for row, method in enumerate(methods):
        value: Estimate = found[stream, method]
        axes.errorbar(value.mean, row, xerr=value.error, linestyle="none", markersize=5, **MARKS[kind(method)])
    axes.set_title(stream, fontsize=10, color=INK)
    axes.set_xlim(-0.02 if stream == "split-class" else 0.48, 1.02)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=INK, length=0, labelsize=8)


def draw(records: Iterable[Record], file: Path) -> None:
    """Write the figure of the methods that were run on all split streams, ordered by the last of these."""
    streams, methods, found = averages(records)
    if not methods:
        raise ValueError(f"Expected records of a method on all of {streams}, got none.")
    order = sorted(methods, key=lambda method: found[streams[-1], method].mean)
    with mpl.rc_context({"svg.hashsalt": "streams", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 0.24 * len(order) + 1.6), layout="constrained")
        panels = figure.subplots(1, len(streams), sharey=True)
        for axes, stream in zip(panels, streams, strict=True):
            panel(axes, stream, order, found)
        panels[0].set_yticks(range(len(order)), order)
        figure.supxlabel("average test accuracy over all five tasks, after the last", fontsize=9, color=INK)
        marks = [Line2D([], [], linestyle="none", markersize=5, label=name, **mark) for name, mark in MARKS.items()]
        figure.legend(handles=marks, loc="outside upper center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})
