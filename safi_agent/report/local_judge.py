"""The part of the report on a local judge: how often it was asked, and how often the language model said the same."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from safi_agent.ledger import number
from safi_agent.report.binning import NONE, Bin, bins
from safi_agent.values import label
from sal_page import Section
from sal_page.themes import COLORS

MOST_BINS = 40
MOST_VALUES = 100  # bounds memory, as in a review
LOCAL = "local"
TITLE = "Local judge"
CAPTION = (
    "Share of findings on which the local judge and the language model agree that a value is broken or not, in turns "
    "that were checked as a whole and where the local judge was sure; and share of findings that were escalated. Lines "
    "show means over consecutive lines of the log."
)
COLUMNS = ("value", "local", "escalated", "unscored", "compared", "agree", "only local broken", "only model broken")


@dataclass
class LocalJudgements:
    """What the records say of a local judge; each column has one figure for each record that names one."""

    places: "array[int]" = field(default_factory=lambda: array("q"))
    escalated: "array[float]" = field(default_factory=lambda: array("d"))  # share of the findings of a turn
    agreement: "array[float]" = field(default_factory=lambda: array("d"))  # of sure findings of a checked turn, or NaN
    values: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, place: int, record: Mapping[str, Any]) -> None:
        """Add a record, if a local judge took part; fields of the wrong type are treated as missing."""
        local = record.get("localJudge")
        rows = local.get("findings") if isinstance(local, Mapping) else None
        rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        if not isinstance(local, Mapping) or not rows:
            return
        ledger = _scores(record.get("conscienceLedger"))
        compared = [(row.get("sure") is True, self._count(row, ledger)) for row in rows]
        agrees = [agree for sure, agree in compared if sure and agree is not None]
        asked = sum(row.get("judge") not in (LOCAL, None) for row in rows)
        checked = local.get("checked") is True and agrees
        self.places.append(place)
        self.escalated.append(asked / len(rows))
        self.agreement.append(sum(agrees) / len(agrees) if checked else NONE)

    def _count(self, row: Mapping[str, Any], ledger: Mapping[str, float]) -> bool | None:
        """Count a finding; whether both judges agree, None if only one has judged."""
        name = str(row.get("value"))
        if name not in self.values and len(self.values) >= MOST_VALUES:
            return None
        counts = self.values.setdefault(name, Counter())
        judge, score = row.get("judge"), number(row.get("score"), -1, 1)
        counts["local" if judge == LOCAL else "unscored" if judge is None else "escalated"] += 1
        other = ledger.get(label(name))
        if judge in (LOCAL, None) or score is None or other is None:
            return None
        counts["compared"] += 1
        counts[
            "agree" if (score < 0) == (other < 0) else "only local broken" if score < 0 else "only model broken"
        ] += 1
        return (score < 0) == (other < 0)


def _scores(ledger: object) -> dict[str, float]:
    """The scores of a ledger by the normalized name of the value."""
    rows = [row for row in ledger if isinstance(row, Mapping)] if isinstance(ledger, list) else []
    scores = {label(str(row.get("value"))): number(row.get("score"), -1, 1) for row in rows}
    return {name: score for name, score in scores.items() if score is not None}


def section(judgements: LocalJudgements) -> tuple[Section, ...]:
    """The section of the report; empty if no local judge took part."""
    if not judgements.places:
        return ()
    return (Section(TITLE, CAPTION, (figure(judgements),), wide=True, markup=table(judgements)),)


def figure(judgements: LocalJudgements) -> Any:
    """Agreement and share escalated over the lines of the log."""
    from plotly.graph_objects import Figure

    series = {"agreement where sure": judgements.agreement, "escalated": judgements.escalated}
    traces = [
        _line(name, colour, bins(judgements.places, column, MOST_BINS))
        for (name, column), colour in zip(series.items(), COLORS, strict=False)
    ]
    fixed = {"fixedrange": True, "zeroline": False}
    layout = {
        "height": 280,
        "margin": {"l": 40, "r": 12, "t": 8, "b": 44},
        "legend": {"orientation": "h", "y": 1.15},
        "xaxis": {**fixed, "title": {"text": "line of the log"}, "tickformat": "d", "nticks": 5},
        "yaxis": {**fixed, "range": [-0.03, 1.03], "tickvals": [0, 0.25, 0.5, 0.75, 1]},
    }
    return Figure(traces, layout)


def _line(name: str, colour: str, means: list[Bin]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [one.last for one in means],
        "y": [one.mean for one in means],
        "connectgaps": True,
        "line": {"color": colour, "width": 1.8},
        "marker": {"size": 4},
        "hovertemplate": f"{name}<br>to line %{{x}}<br>%{{y:.2~f}}<extra></extra>",
    }


def table(judgements: LocalJudgements) -> str:
    """An HTML table with a row per value: findings of each judge, and disagreements. Texts are escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "".join(
        f"<tr><td>{escape(name[:80])}</td>{''.join(f'<td>{counts[column]:,}</td>' for column in COLUMNS[1:])}</tr>"
        for name, counts in judgements.values.items()
    )
    return f'<div class="calibration"><table><tr>{head}</tr>{rows}</table></div>'
