"""The spectrum of each layer over time."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sal_lightning.report.plot_elements import BANDS, bands, events
from sal_lightning.report.reading import Run

ROW = 92  # height of a layer's row in pixels
MOST = 12  # largest number of layers drawn as rows; more are drawn as a heat map
LONGEST = 26  # largest number of characters of a layer's name


def layers(run: Run, kind: str) -> go.Figure:
    """The spectrum of each layer over time, as ``"held"`` or as ``"observed"``."""
    names = [name for name in run.layers() if f"layers/{name}/{kind}/protected" in run.series]
    return _rows(run, names, kind) if len(names) <= MOST else _heat(run, names, kind)


def _rows(run: Run, names: Sequence[str], kind: str) -> go.Figure:
    height = ROW * len(names) + 70
    titles = [short(name) for name in names]
    figure = make_subplots(len(names), 1, shared_xaxes=True, vertical_spacing=0.3 * ROW / height, subplot_titles=titles)
    for row, name in enumerate(names, 1):
        bands(figure, [run.series[f"layers/{name}/{kind}/{band}"] for band in BANDS], row)
        events(figure, run, 100, row)
    figure.update_annotations(x=0, xanchor="left", font_size=12)
    figure.update_yaxes(range=[0, 100], tickvals=[0, 50, 100])
    figure.update_layout(height=height, legend_y=1 + 28 / height)
    return figure.update_xaxes(title_text="step", row=len(names))


def _heat(run: Run, names: Sequence[str], kind: str) -> go.Figure:
    series = [run.series[f"layers/{name}/{kind}/protected"] for name in names]
    steps = sorted({step for one in series for step in one.steps})
    known = [dict(zip(*one, strict=True)) for one in series]
    figure = go.Figure(
        go.Heatmap(
            x=steps,
            y=[short(name) for name in names],
            z=[[values.get(step) for step in steps] for values in known],
            zmin=0,
            zmax=100,
            colorscale="Viridis",
            colorbar={
                "title": {"text": "% protected", "side": "top"},
                "orientation": "h",
                "thickness": 10,
                "y": 1,
                "yanchor": "bottom",
            },
        )
    )
    figure.update_yaxes(autorange="reversed", tickfont_size=10, dtick=1)
    return figure.update_xaxes(title_text="step").update_layout(height=16 * len(names) + 140)


def short(name: str) -> str:
    """A layer's name; the beginning of long ones is replaced by an ellipsis.

    >>> short("transformer.encoder.layers.11.attention.output")
    '…ers.11.attention.output'
    """
    return name if len(name) <= LONGEST else "…" + name[-LONGEST + 3 :]
