"""The plots of the report: score and drift over the turns of each memory key, and the ledger.

Names are escaped, because plotly interprets markup in them. Plots contain no texts of turns.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from textwrap import wrap
from typing import Any, NamedTuple

from safi_agent.report.binning import Bin, bins
from safi_agent.report.review import Review, Series
from sal_page.themes import COLORS

Part = dict[str, Any]  # a part of a plotly figure
MOST_KEYS = 8  # lines that can be distinguished in one plot
MOST_BINS = 60  # for trends and the ledger
MOST_MARKS = 300  # turns beyond a threshold, per key
NARROW, WIDE = 20, 44  # characters per line of a value's name
SCALE = [[0, "#c2410c"], [0.5, "#d4d4d4"], [1, "#1d4ed8"]]
THRESHOLD = "#e0642c"  # at least 3 to 1 on the cards of both themes
_FIXED = {"fixedrange": True, "zeroline": False}


class Ledger(NamedTuple):
    """The heat map, and the layout updates for narrow and wide screens."""

    figure: Any
    narrow: Part
    wide: Part


def keys(review: Review) -> list[Part]:
    """Name, number of turns and colour of the plotted memory keys."""
    named = zip(shown_keys(review), COLORS, strict=False)
    return [{"name": key, "turns": len(review.keys[key].turns), "colour": colour} for key, colour in named]


def shown_keys(review: Review) -> list[str]:
    """The memory keys with the most turns, at most eight."""
    return sorted(review.keys, key=lambda key: (-len(review.keys[key].turns), key))[:MOST_KEYS]


def scores(review: Review) -> Any:
    """Spirit score in [1, 10] over the turns of each memory key; turns below the threshold are marked."""
    axis = {**_FIXED, "range": [0.5, 10.5], "tickvals": [1, 4, 7, 10]}
    least = review.review_below
    return _trend(review, lambda series: series.scores, axis, lambda score: score < least, least, "score")


def drifts(review: Review) -> Any:
    """Drift in [0, 1] over the turns of each memory key; turns above the threshold are marked."""
    axis = {**_FIXED, "range": [-0.03, 1.03], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    most = review.drift_above
    return _trend(review, lambda series: series.drifts, axis, lambda drift: drift > most, most, "drift")


def _trend(
    review: Review,
    column: Callable[[Series], Sequence[float]],
    axis: Part,
    beyond: Callable[[float], bool],
    threshold: float,
    what: str,
) -> Any:
    from plotly.graph_objects import Figure

    traces = []
    named = shown_keys(review)
    dated = _tells_time([time for key in named for time in review.keys[key].times])
    for key, colour in zip(named, COLORS, strict=False):
        series = review.keys[key]
        name = escape(_short(key, 40))
        x: Mapping[int, Any] = dict(zip(series.turns, map(_iso, series.times) if dated else series.turns, strict=True))
        traces.append(_line(name, colour, bins(series.turns, column(series), MOST_BINS), what, x))
        traces.append(_marks(name, colour, series.turns, column(series), beyond, what, x))
    mark = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": threshold, "y1": threshold}
    longest = max((max(review.keys[key].turns) for key in named), default=1)
    turns = {"title": {"text": "turn"}, "tickformat": "d", "tick0": 0, "dtick": max(1, round(longest / 5))}
    times = {"title": {"text": "time (UTC)"}, "type": "date", "nticks": 5}
    layout = {
        "height": 280,
        "margin": {"l": 40, "r": 12, "t": 8, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {**_FIXED, **(times if dated else turns)},
        "yaxis": axis,
        "shapes": [{**mark, "line": {"color": THRESHOLD, "width": 2, "dash": "dot"}}],
    }
    return Figure(traces, layout)


def _tells_time(times: Sequence[float]) -> bool:
    """Whether times can be an axis: all are known, and they differ."""
    return not any(map(math.isnan, times)) and len(set(times)) > 1


def _iso(seconds: float) -> str:
    """A time in UTC as plotly reads it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _line(name: str, colour: str, means: list[Bin], what: str, x: Mapping[int, Any]) -> Part:
    """The line of the mean of each bin."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [x[bin.last] for bin in means],
        "y": [bin.mean for bin in means],
        "customdata": [[name, _span(bin), bin.known, bin.low, bin.high] for bin in means],
        "connectgaps": True,
        "line": {"color": colour, "width": 1.8},
        "marker": {"size": 4},
        "hovertemplate": (
            f"%{{customdata[0]}}<br>turn %{{customdata[1]}}<br>mean {what} %{{y:.2~f}} of %{{customdata[2]}}"
            ", %{customdata[3]:.2~f} to %{customdata[4]:.2~f}<extra></extra>"
        ),
    }


def _marks(
    name: str,
    colour: str,
    turns: Sequence[int],
    figures: Sequence[float],
    beyond: Callable[[float], bool],
    what: str,
    x: Mapping[int, Any],
) -> Part:
    """Markers for the newest turns beyond the threshold."""
    points = [(turn, figure) for turn, figure in zip(turns, figures, strict=True) if beyond(figure)][-MOST_MARKS:]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x[turn] for turn, _ in points],
        "y": [figure for _, figure in points],
        "customdata": [[name, turn] for turn, _ in points],
        "marker": {"color": colour, "size": 8, "symbol": "x-thin", "line": {"color": colour, "width": 1.5}},
        "hovertemplate": f"%{{customdata[0]}}<br>turn %{{customdata[1]}}<br>{what} %{{y:.2~f}}<extra></extra>",
    }


def ledger(review: Review) -> Ledger:
    """Mean score in [−1, 1] of each value over the lines of the log; gaps where there is no score."""
    from plotly.graph_objects import Figure

    names = list(review.values)
    rows = [bins(review.places, review.values[name], MOST_BINS) for name in names]
    spans = rows[0] if rows else []
    trace = {
        "type": "heatmap",
        "z": [[bin.mean for bin in row] for row in rows],
        "x": list(range(len(spans))),
        "y": list(range(len(rows))),  # not the names, some of which plotly would parse as dates or numbers
        "customdata": [
            [[escape(_short(name, 80)), _span(bin), bin.known, bin.low, bin.high] for bin in row]
            for name, row in zip(names, rows, strict=True)
        ],
        "zmin": -1,
        "zmax": 1,
        "colorscale": SCALE,
        "colorbar": {
            "orientation": "h",
            "thickness": 8,
            "len": 0.6,
            "x": 0.5,
            "y": 1,
            "yanchor": "bottom",
            "tickvals": [-1, 0, 1],
            "ticktext": ["−1 violates", "0", "1 affirms"],
        },
        "hoverongaps": False,
        "ygap": 2,
        "hovertemplate": (
            "%{customdata[0]}<br>line %{customdata[1]}<br>mean %{z:.2f} of %{customdata[2]}"
            ", %{customdata[3]:.2~f} to %{customdata[4]:.2~f}<extra></extra>"
        ),
    }
    times = dict(zip(review.places, review.times, strict=True))
    dated = _tells_time(review.times)
    ticks = [i * len(spans) // 4 for i in range(4)] if len(spans) > 4 else list(range(len(spans)))
    layout = {
        "margin": {"l": 8, "r": 12, "t": 44, "b": 70},
        "xaxis": {
            **_FIXED,
            "title": {"text": "line of the log, and its time (UTC)" if dated else "line of the log"},
            "tickangle": 0,
            "tickvals": ticks,
            "ticktext": [_tick(spans[i].first, times if dated else {}) for i in ticks],
        },
        "yaxis": {
            **_FIXED,
            "autorange": "reversed",
            "automargin": True,
            "tickvals": list(range(len(rows))),
            "ticksuffix": "  ",
            "tickfont": {"size": 11},
        },
    }
    wide = _sized(names, WIDE)
    return Ledger(Figure([trace], {**layout, "height": wide["height"]}), _sized(names, NARROW), wide)


def _tick(line: int, times: Mapping[int, float]) -> str:
    """The number of a line; under it its day and time, if they are known."""
    return f"{line}<br>{datetime.fromtimestamp(times[line], UTC):%d %b<br>%H:%M}" if line in times else str(line)


def _sized(names: Sequence[str], width: int) -> Part:
    """The layout for names wrapped at ``width`` characters: tick labels and height in pixels."""
    labels = ["<br>".join(escape(line) for line in wrap(_short(name, 80), width) or [" "]) for name in names]
    tallest = max((label.count("<br>") + 1 for label in labels), default=1)
    return {"yaxis.ticktext": labels, "height": 126 + (14 * tallest + 10) * max(len(labels), 1)}


def _short(name: str, most: int) -> str:
    """The name cut to ``most`` characters; characters that cannot be printed are replaced."""
    whole = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def _span(bin: Bin) -> str:
    return str(bin.first) if bin.first == bin.last else f"{bin.first}\u2013{bin.last}"
