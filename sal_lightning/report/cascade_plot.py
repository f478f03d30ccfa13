"""A plot of a cascade: one line per pulse."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from sal_lightning.report.flow import lanes
from sal_lightning.report.plot_elements import MARK
from sal_page.themes import COLORS


def cascade(record: dict[str, Any]) -> go.Figure:
    """A line for every pulse, with branches where it split, and its end where it merged or expired."""
    pulses, generations = record["pulses"], record["generations"]
    lane = lanes(pulses, generations)
    figure = go.Figure()
    families = sorted({pulse["lineage"] for pulse in pulses})
    for lineage in families:
        x, y = _lines([pulse for pulse in pulses if pulse["lineage"] == lineage], lane, generations)
        color = COLORS[families.index(lineage) % len(COLORS)]
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            name=f"lineage {lineage}",
            line={"width": 2, "color": color},
            marker_size=4,
            showlegend=False,
        )
    gone = [pulse for pulse in pulses if pulse["fate"] == "expired"]
    x, y = [pulse["ended"] - 1 for pulse in gone], [lane[pulse["number"]] for pulse in gone]
    figure.add_scatter(x=x, y=y, mode="markers", name="expired", marker={"symbol": "x", "size": 9, "color": "#8f8f8f"})
    emerged = record["emerged"]
    star = {"symbol": "star", "size": 16, "color": MARK}
    figure.add_scatter(x=[generations], y=[lane[emerged]], mode="markers", name="emerged", marker=star)
    figure.update_layout(height=max(300, 12 * len(set(lane.values())) + 110))
    figure.update_xaxes(title_text="generation", dtick=max(1, generations // 10), range=[-0.3, generations + 0.5])
    return figure.update_yaxes(visible=False)


def _lines(pulses: Sequence[dict[str, Any]], lane: dict[int, int], generations: int) -> tuple[list[Any], list[Any]]:
    """Points of the lines of these pulses, separated by None."""
    x: list[Any] = []
    y: list[Any] = []
    for pulse in pulses:
        here, born = lane[pulse["number"]], pulse["born"]
        points = [(born - 1, lane[pulse["parent"]])] if pulse["parent"] is not None else []
        last = generations if pulse["ended"] is None else pulse["ended"] - 1
        points += [(generation, here) for generation in range(born, last + 1)]
        if pulse["into"] is not None:
            points.append((pulse["ended"], lane[pulse["into"]]))
        x += [point[0] for point in points] + [None]
        y += [point[1] for point in points] + [None]
    return x, y
