"""The plots of a run, each a function of what it logged; figures of plotly, without the colours of the page."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sal_lightning.field import COHERENT, NOVEL
from sal_lightning.report.flow import lanes
from sal_lightning.report.reading import Run, Series
from sal_page.themes import COLORS

BANDS = {"protected": "#2a86c7", "neutral": "#a3acb8", "volatile": "#e0913a"}
MARK = "#c2477f"  # of a consolidation
ROW = 92  # pixels of a layer
MOST = 12  # layers drawn one by one; more make a heat map
LONGEST = 26  # letters of a layer's name
HEALTHY = (12.0, 71.0, 17.0)  # the spectrum that SAL's README shows


def preservation(run: Run) -> go.Figure:
    """How much of the gradient, and of what the optimizer made of it, was held back."""
    figure = go.Figure()
    for name, label in (("suppressed", "gradient"), ("effect", "update")):
        steps, values = run.series[name]
        figure.add_scatter(x=steps, y=[100 * v for v in values], name=label, line_width=2)
    _events(figure, run, 100)
    _percent(figure)
    return figure.update_yaxes(title_text="held back, %").update_xaxes(title_text="step")


def spectrum(run: Run) -> go.Figure:
    """The spectrum over time: what an update meets, and what has settled by itself."""
    kinds = [("", "held")] + [("observed/", "observed")] * ("observed/protected" in run.series)
    figure = make_subplots(len(kinds), 1, shared_xaxes=True, vertical_spacing=0.1)
    for row, (prefix, _) in enumerate(kinds, 1):
        _bands(figure, [run.series[prefix + band] for band in BANDS], row)
        _events(figure, run, 100, row)
    for row, (_, label) in enumerate(kinds, 1):
        figure.update_yaxes(title_text=f"{label}, %", row=row)
    _percent(figure)
    return figure.update_layout(height=200 * len(kinds) + 40).update_xaxes(title_text="step", row=len(kinds))


def healthy(run: Run) -> go.Figure:
    """The spectrum at the end beside the one that SAL's README calls healthy."""
    rows = {"README": HEALTHY}
    for prefix, label in (("observed/", "observed"), ("", "held")):
        if prefix + "protected" in run.series:
            rows[label] = tuple(run.series[prefix + band].values[-1] for band in BANDS)  # type: ignore[assignment]
    figure = go.Figure()
    for i, (band, color) in enumerate(BANDS.items()):
        values = [row[i] for row in rows.values()]
        figure.add_bar(
            y=list(rows),
            x=values,
            name=band,
            orientation="h",
            marker_color=color,
            text=[f"{value:.0f}" if value >= 4 else "" for value in values],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont_color="#10141a",
        )
    figure.update_layout(barmode="stack", height=190, bargap=0.35, legend_traceorder="normal")
    return figure.update_xaxes(range=[0, 100], title_text="% of weights").update_yaxes(
        autorange="reversed", ticksuffix=" "
    )


def emergence(run: Run) -> go.Figure:
    """Coherence against novelty, one point a logged step; emergence is where both are high."""
    coherence, novelty = run.series["coherence"], run.series["novelty"]
    seen = dict(zip(*novelty, strict=True))
    points = [(step, x, seen[step]) for step, x in zip(*coherence, strict=True) if step in seen]
    steps, x, y = map(list, zip(*points, strict=True)) if points else ([], [], [])
    figure = go.Figure(
        go.Scatter(
            x=x,
            y=y,
            mode="markers",
            marker={
                "color": steps,
                "size": 8,
                "opacity": 0.85,
                "colorscale": "Viridis",
            },
            customdata=steps,
            hovertemplate="step %{customdata}<br>coherence %{x:.2f}<br>novelty %{y:.2f}<extra></extra>",
        )
    )
    figure.add_shape(type="rect", x0=COHERENT, x1=1, y0=NOVEL, y1=1, line_dash="dot", fillcolor=MARK, opacity=0.12)
    figure.add_annotation(x=(1 + COHERENT) / 2, y=0.97, text="emergence", yanchor="top")
    figure.update_xaxes(title_text="coherence", range=[-0.02, 1.02])
    return figure.update_yaxes(title_text="novelty", range=[-0.02, 1.02]).update_layout(height=380)


def resonance(run: Run) -> go.Figure:
    """The field over time: coherence, novelty, resonance."""
    figure = go.Figure()
    for name in ("coherence", "novelty", "resonance"):
        if name in run.series:
            figure.add_scatter(x=run.series[name].steps, y=run.series[name].values, name=name, line_width=1.5)
    _events(figure, run, 1)
    return figure.update_yaxes(range=[0, 1.02]).update_xaxes(title_text="step").update_layout(height=260)


def drift(run: Run, against: Run | None = None) -> go.Figure:
    """How far the features of the same inputs have moved, in this run and in another."""
    figure = go.Figure()
    runs = [("this run", run, COLORS[0])] + ([("the other", against, COLORS[1])] if against else [])
    top = 0.0
    for label, one, color in runs:
        steps, values = one.series["feature_drift"]
        top = max(top, *values)
        figure.add_scatter(x=steps, y=values, name=label, line={"width": 2, "color": color})
    _events(figure, run, top)
    figure.update_xaxes(title_text="step", rangemode="tozero")
    return figure.update_yaxes(title_text="relative drift", rangemode="tozero")


def less_drift(run: Run, against: Run) -> tuple[float, float, float] | None:
    """At the last step that both logged: it, this run's drift and the other's.

    >>> run = lambda *values: Run("", {"feature_drift": Series([1, 2, 3][: len(values)], list(values))}, [])
    >>> less_drift(run(0.1, 0.2), run(0.5, 1.0, 1.5))
    (2, 0.2, 1.0)
    """
    if not all("feature_drift" in one.series for one in (run, against)):
        return None
    ours, theirs = (dict(zip(*one.series["feature_drift"], strict=True)) for one in (run, against))
    both = ours.keys() & theirs.keys()
    return (last := max(both), ours[last], theirs[last]) if both else None


def layers(run: Run, kind: str) -> go.Figure:
    """The spectrum of each layer over time, as ``"held"`` or as ``"observed"``."""
    names = [name for name in run.layers() if f"layers/{name}/{kind}/protected" in run.series]
    return _rows(run, names, kind) if len(names) <= MOST else _heat(run, names, kind)


def cascade(record: dict[str, Any]) -> go.Figure:
    """The life of every pulse: a line, its branches where it split, its end where it merged or expired."""
    pulses, generations = record["pulses"], record["generations"]
    lane = lanes(pulses, generations)
    figure = go.Figure()
    families = sorted({pulse["lineage"] for pulse in pulses})
    for lineage in families:
        x, y = _lives([pulse for pulse in pulses if pulse["lineage"] == lineage], lane, generations)
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


# --- parts ---


def _lives(pulses: Sequence[dict[str, Any]], lane: dict[int, int], generations: int) -> tuple[list[Any], list[Any]]:
    """Points of the lines of these pulses, None between two of them."""
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


def _bands(figure: go.Figure, series: Sequence[Series], row: int, legend: bool = True) -> None:
    for (band, color), (steps, values) in zip(BANDS.items(), series, strict=True):
        figure.add_scatter(
            x=steps,
            y=values,
            name=band,
            legendgroup=band,
            showlegend=legend and row == 1,
            stackgroup="bands",
            mode="lines",
            line={"width": 0.5, "color": color},
            fillcolor=color,
            row=row,
            col=1,
        )


def _events(figure: go.Figure, run: Run, top: float, row: int | None = None) -> None:
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


def _percent(figure: go.Figure) -> None:
    figure.update_yaxes(range=[0, 100], ticksuffix="")
    for axis in figure.select_yaxes():
        if not axis.title.text:
            axis.title.text = "%"


def _rows(run: Run, names: Sequence[str], kind: str) -> go.Figure:
    height = ROW * len(names) + 70
    titles = [short(name) for name in names]
    figure = make_subplots(len(names), 1, shared_xaxes=True, vertical_spacing=0.3 * ROW / height, subplot_titles=titles)
    for row, name in enumerate(names, 1):
        _bands(figure, [run.series[f"layers/{name}/{kind}/{band}"] for band in BANDS], row)
        _events(figure, run, 100, row)
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
    """A layer's name, its beginning left out where it is long.

    >>> short("transformer.encoder.layers.11.attention.output")
    '…ers.11.attention.output'
    """
    return name if len(name) <= LONGEST else "…" + name[-LONGEST + 3 :]
