"""A figure of the detector's novelty per batch on a stream with gradual changes."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.figure import COLORS, FAINT, INK


def draw(record: dict[str, Any], file: Path) -> None:
    """Write the figure of a record with curves."""
    heard = record["curve"]
    x = range(heard["each"], heard["each"] * len(heard["excess"]) + 1, heard["each"])
    figure = Figure(figsize=(9, 3.6), dpi=160, layout="constrained")
    shares, novelty = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    shares.stackplot(x, *heard["shares"], colors=["#dfe3e8", "#b9c4cf"] * 3)
    shares.set(yticks=(), ylim=(0, 1), xlim=(x[0], x[-1]))
    shares.set_title("each task's share of the batch", fontsize=9, color=INK, loc="left")
    shares.spines[:].set_visible(False)
    shares.tick_params(length=0)
    novelty.plot(x, heard["excess"], color=COLORS["sal"], linewidth=1.4)
    for event in heard["events"]:
        novelty.axvline(event, color=COLORS["sal"], linewidth=1, linestyle=(0, (2, 2)))
    novelty.set_title("novelty; dashed: detected change", fontsize=9, color=INK, loc="left")
    novelty.spines[["top", "right"]].set_visible(False)
    novelty.spines[["left", "bottom"]].set_color(FAINT)
    novelty.tick_params(colors=INK, length=0, labelsize=8)
    novelty.set_ylabel("log distance over usual", fontsize=8, color=INK)
    novelty.set_xlabel("batch", color=INK)
    figure.suptitle(f"{record['name']} on {record['data']}: gradual changes", fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
