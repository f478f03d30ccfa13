"""A figure of the accuracy on each task during training: one panel per task, one line per method."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.continual.protocol import Result

COLORS = {"plain": "#8a8f98", "sal": "#0b6e99"}
OTHER = "#b3541e"
INK, FAINT = "#2b2f36", "#d5d8dd"
LABELS = {"plain": "plain", "sal": "SAL"}
LABEL_GAP = 0.18
LEGEND = "shaded: this task is trained  ·  solid line: the task changes  ·  dashed line: SAL consolidates by itself"


def spread(heights: Sequence[float], gap: float = LABEL_GAP) -> list[float]:
    """Move labels apart to a minimum distance, keeping their order.

    >>> spread([0.5, 1.0]), [round(h, 2) for h in spread([0.9, 0.9], 0.2)]
    ([0.5, 1.0], [0.8, 1.0])
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for low, high in pairwise(order):
        if (short := gap - (moved[high] - moved[low])) > 0:
            moved[low] -= short / 2
            moved[high] += short / 2
    return moved


def line(result: Result, task: int) -> tuple[list[int], list[float]]:
    """Steps and accuracies from the first training on the task."""
    points = [(point.step, point.accuracy[task]) for point in result.curve if len(point.accuracy) > task]
    return [step for step, _ in points], [accuracy for _, accuracy in points]


def panel(axes: Axes, results: Sequence[Result], task: int) -> None:
    """Draw one task: every method's accuracy on it, labelled at the end of its line."""
    steps, tasks = results[0].steps, len(results[0].R)
    axes.axvspan(task * steps, (task + 1) * steps, color="#f3f1e7", zorder=0)
    for change in range(1, tasks):
        axes.axvline(change * steps, color=FAINT, linewidth=1, zorder=1)
    for result in results:
        color = COLORS.get(result.method, OTHER)
        for event in result.events:
            axes.axvline(event, color=color, linewidth=1, linestyle=(0, (2, 2)), alpha=0.8, zorder=2)
        axes.plot(*line(result, task), color=color, linewidth=1.8, solid_capstyle="round", zorder=3)
    ends = [result.R[-1][task] for result in results]
    for result, end, height in zip(results, ends, spread(ends), strict=True):
        name = f"{LABELS.get(result.method, result.method)} {end:.2f}"
        color = COLORS.get(result.method, OTHER)
        end_of_line = (tasks * steps, height)
        axes.annotate(
            name, end_of_line, (6, 0), textcoords="offset points", annotation_clip=False, color=color, va="center"
        )
    axes.set_ylabel(f"task {task + 1}", rotation=0, ha="right", va="center", color=INK, labelpad=8)
    axes.set(ylim=(-0.04, 1.06), yticks=(0, 0.5, 1), xlim=(0, tasks * steps))
    axes.set_xticks(range(0, (tasks + 1) * steps, steps))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=8)


def draw(results: Sequence[Result], file: Path) -> None:
    """Write the figure; all results must be of one stream."""
    first = results[0]
    tasks = len(first.R)
    figure = Figure(figsize=(9, 1.15 * tasks + 1.6), dpi=160, layout="constrained")
    panels = figure.subplots(tasks, 1, sharex=True, squeeze=False)[:, 0]
    for task, axes in enumerate(panels):
        panel(axes, results, task)
    panels[-1].set_xlabel("training step", color=INK)
    figure.supylabel("test accuracy on each task", fontsize=10, color=INK)
    means = ", ".join(f"{LABELS.get(r.method, r.method)} {r.measures['average']:.2f}" for r in results)
    figure.suptitle(f"{first.scenario} on {first.data}: average accuracy at the end, {means}", fontsize=12, color=INK)
    panels[0].set_title(LEGEND, fontsize=8.5, color=INK, loc="left")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
