"""Elements shared by several plots."""

from collections.abc import Sequence

import plotly.graph_objects as go

from sal_lightning.report.reading import Run, Series

BANDS = {"protected": "#2a86c7", "neutral": "#a3acb8", "volatile": "#e0913a"}
MARK = "#c2477f"  # color of consolidations


def bands(figure: go.Figure, series: Sequence[Series], row: int) -> None:
    """Add a spectrum over time, stacked, to a row of the figure."""
    for (band, color), (steps, values) in zip(BANDS.items(), series, strict=True):
        figure.add_scatter(
            x=steps,
            y=values,
            name=band,
            legendgroup=band,
            showlegend=row == 1,
            stackgroup="bands",
            mode="lines",
            line={"width": 0.5, "color": color},
            fillcolor=color,
            row=row,
            col=1,
        )


def events(figure: go.Figure, run: Run, top: float, row: int | None = None) -> None:
    """Add a dotted vertical line from 0 to ``top`` at each consolidation."""
    if not run.events:
        return
    place = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        x=[x for event in run.events for x in (event, event, None)],
        y=[y for _ in run.events for y in (0, top, None)],
        mode="lines",
        name="consolidated",
        showlegend=row in (None, 1),
        line={"width": 1.5, "dash": "dot", "color": MARK},
        hoverinfo="x+name",
        **place,
    )


def percent(figure: go.Figure) -> None:
    """Set the y axes to 0 to 100 %."""
    figure.update_yaxes(range=[0, 100], ticksuffix="")
    for axis in figure.select_yaxes():
        if not axis.title.text:
            axis.title.text = "%"
