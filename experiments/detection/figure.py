"""What a stream whose tasks shade into each other looks like to the detector, batch by batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figure import COLORS, FAINT, INK, OTHER


def panel(axes: Axes, x: Sequence[int], values: list[float], events: list[int], color: str, title: str) -> None:
    """One line, and where a change was believed."""
    axes.plot(x, values, color=color, linewidth=1.4)
    for event in events:
        axes.axvline(event, color=color, linewidth=1, linestyle=(0, (2, 2)))
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    axes.set_ylabel("log distance over usual", fontsize=8, color=INK)


def draw(record: dict[str, Any], file: Path) -> None:
    """Write the figure of a record that holds its curves."""
    heard = record["curve"]
    x = range(heard["each"], heard["each"] * len(heard["excess"]) + 1, heard["each"])
    figure = Figure(figsize=(9, 5), dpi=160, layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(1, 3, 3))
    shares = panels[0]
    shares.stackplot(x, *heard["shares"], colors=["#dfe3e8", "#b9c4cf"] * 3)
    shares.set(yticks=(), ylim=(0, 1), xlim=(x[0], x[-1]))
    shares.set_title("each task's share of the batch", fontsize=9, color=INK, loc="left")
    shares.spines[:].set_visible(False)
    shares.tick_params(length=0)
    novelty = f"novelty: from what the window is now ({len(heard['events'])} changes believed)"
    panel(panels[1], x, heard["excess"], heard["events"], COLORS["sal"], novelty)
    drift = (
        f"the same from an older copy of the window ({len(heard['pair_events'])} changes, dashed; it then starts again)"
    )
    panel(panels[2], x, heard["drift"], heard["pair_events"], OTHER, drift)
    panels[2].set_xlabel("batch", color=INK)
    figure.suptitle(
        f"{record['name']} on {record['data']}: a gradual change is not noticed, and how it could be", fontsize=11
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
