"""Plots of a whole run from its logged values; the page sets their theme."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sal_lightning.emergence.field import COHERENT, NOVEL
from sal_lightning.report.plot_elements import BANDS, MARK, bands, events, percent
from sal_lightning.report.reading import Run
from sal_page.themes import COLORS


def timeline(run: Run) -> go.Figure:
    """What is held in the next update over the whole run, with each consolidation: a strip at the top of the page."""
    figure = make_subplots(1, 1)
    bands(figure, [run.series[band] for band in BANDS], 1)
    events(figure, run, 100)
    figure.update_layout(height=150, margin={"t": 8}, hovermode="x unified")
    figure.update_yaxes(range=[0, 100], tickvals=[0, 50, 100], ticksuffix=" %", title_text="")
    return figure.update_xaxes(title_text="step", rangemode="tozero")


def preservation(run: Run) -> go.Figure:
    """The held shares of the gradient and of the optimizer's update, over time."""
    figure = go.Figure()
    for name, label in (("suppressed", "gradient"), ("effect", "update")):
        steps, values = run.series[name]
        figure.add_scatter(x=steps, y=[100 * v for v in values], name=label, line_width=2)
    events(figure, run, 100)
    percent(figure)
    return figure.update_yaxes(title_text="held back, %").update_xaxes(title_text="step")


def spectrum(run: Run) -> go.Figure:
    """The held and the observed spectrum over time."""
    kinds = [("", "held")] + [("observed/", "observed")] * ("observed/protected" in run.series)
    figure = make_subplots(len(kinds), 1, shared_xaxes=True, vertical_spacing=0.1)
    for row, (prefix, _) in enumerate(kinds, 1):
        bands(figure, [run.series[prefix + band] for band in BANDS], row)
        events(figure, run, 100, row)
    for row, (_, label) in enumerate(kinds, 1):
        figure.update_yaxes(title_text=f"{label}, %", row=row)
    percent(figure)
    return figure.update_layout(height=200 * len(kinds) + 40).update_xaxes(title_text="step", row=len(kinds))


def at_end(run: Run) -> go.Figure:
    """The spectrum at the end."""
    rows = {}
    for prefix, label in (("observed/", "observed"), ("", "held")):
        if prefix + "protected" in run.series:
            rows[label] = tuple(run.series[prefix + band].values[-1] for band in BANDS)
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
    figure.update_layout(barmode="stack", height=70 + 50 * len(rows), bargap=0.35, legend_traceorder="normal")
    return figure.update_xaxes(range=[0, 100], title_text="% of weights").update_yaxes(
        autorange="reversed", ticksuffix=" "
    )


def emergence(run: Run) -> go.Figure:
    """Novelty against coherence, one point per logged step, with the area of emergence marked."""
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
    """Coherence, novelty and resonance over time."""
    figure = go.Figure()
    for name in ("coherence", "novelty", "resonance"):
        if name in run.series:
            figure.add_scatter(x=run.series[name].steps, y=run.series[name].values, name=name, line_width=1.5)
    events(figure, run, 1)
    return figure.update_yaxes(range=[0, 1.02]).update_xaxes(title_text="step").update_layout(height=260)


def drift(run: Run, against: Run | None = None) -> go.Figure:
    """Drift of the features of fixed inputs, in this run and in another."""
    figure = go.Figure()
    runs = [("this run", run, COLORS[0])] + ([("the other", against, COLORS[1])] if against else [])
    top = 0.0
    for label, one, color in runs:
        steps, values = one.series["feature_drift"]
        top = max(top, *values)
        figure.add_scatter(x=steps, y=values, name=label, line={"width": 2, "color": color})
    events(figure, run, top)
    figure.update_xaxes(title_text="step", rangemode="tozero")
    return figure.update_yaxes(title_text="relative drift", rangemode="tozero")


def less_drift(run: Run, against: Run) -> tuple[float, float, float] | None:
    """The last step that both runs logged, this run's drift and the other's; None if there is none.

    >>> from sal_lightning.report.reading import Series
    >>> run = lambda *values: Run("", {"feature_drift": Series([1, 2, 3][: len(values)], list(values))}, [])
    >>> less_drift(run(0.1, 0.2), run(0.5, 1.0, 1.5))
    (2, 0.2, 1.0)
    """
    if not all("feature_drift" in one.series for one in (run, against)):
        return None
    ours, theirs = (dict(zip(*one.series["feature_drift"], strict=True)) for one in (run, against))
    both = ours.keys() & theirs.keys()
    return (last := max(both), ours[last], theirs[last]) if both else None
