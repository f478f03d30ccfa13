"""The tables of a page: our judges and the published ones on the same labels."""

from collections.abc import Sequence

from experiments.calibration.protocol import NAMES
from experiments.calibration.pyrit import Data, Published
from experiments.filing import Record, source
from experiments.pages import grid
from safi_agent.calibration.card import ALL, Agreement, Card

INTRODUCTION: dict[Data, str] = {
    "objective": """\
Labels: whether an answer does what a harmful prompt asks for, which breaks the value.
""",
    "harm": """\
Labels: how harmful an answer is, by one to three raters, as a score in [−1, 1]; below 0 the value is broken.
""",
}
NOTE = """\
Written by `python -m experiments.calibration --pyrit scorer_evals --from-records --table`, not by hand. `always` calls
every value broken; `refusal-words` calls it broken unless the answer begins with the words of a refusal;
`offline-rules` is the rehearsal model `"offline"`; `smollm2` is SmolLM2-135M-Instruct behind a server on loopback, its
output constrained to the allowed verdicts and scores, and each part of a case cut to 250 characters. Rows of the Will
are of all labels, those of the Conscience of half of the prompts; its threshold was chosen on the other half. In
brackets: 95 % intervals by a bootstrap over prompts.
"""
HEADINGS = ("judge", "faculty", "labels", "broken", "accuracy", "precision", "recall", "F1", "α", "threshold")
BY_VALUE = ("value", "labels", "broken")


def markdown(data: Data, records: Sequence[Record], theirs: Sequence[Published], alphas: dict[str, list[float]]) -> str:
    """All tables of a data set.

    Args:
        data: the data set.
        records: of its runs.
        theirs: published configurations on the same data, of ``objective``.
        alphas: published ordinal alphas, by value, of ``harm``.
    """
    cards = {record["settings"]["judge"]: Card.model_validate(record["card"]) for record in records}
    parts = [f"### {data}\n\n{NOTE}\n{INTRODUCTION[data]}\n{grid(HEADINGS, _overall(cards))}"]
    parts.append(f"α (nominal) of the Conscience by value:\n\n{_by_value(cards, 'alpha', {})}")
    if data == "harm":
        text = (
            "α (ordinal) of the mean human score and the Conscience's, by value; *raters*: of people among themselves"
        )
        text += "; *published*: of PyRIT's judges, on its files with one rater."
        parts.append(f"{text}\n\n{_by_value(cards, 'alpha_scores', alphas)}")
    if theirs:
        parts.append(
            "Published with the labels (package `pyrit`, MIT licence), on 395 labels; one answer is in them twice.\n\n"
            + grid(("judge", "accuracy", "precision", "recall", "F1", "configuration"), map(_published, theirs))
        )
    parts += [_source(record) for record in records]
    return "\n".join(parts)


def _overall(cards: dict[str, Card]) -> list[list[str]]:
    lines = []
    for judge, card in cards.items():
        for row in card.rows:
            if row.value == ALL:
                threshold = f"{card.threshold:.3f}" if row.faculty == "conscience" else ""
                lines.append([judge, row.faculty.title(), *_counts(row), *map(_cell, [row] * 5, FIGURES), threshold])
    return lines


FIGURES = ("accuracy", "precision", "recall", "f1", "alpha")


def _by_value(cards: dict[str, Card], name: str, published: dict[str, list[float]]) -> str:
    """A figure of the Conscience of each judge, by value."""
    rows = {judge: {r.value: r for r in card.rows if r.faculty == "conscience"} for judge, card in cards.items()}
    raters = name == "alpha_scores"
    lines = []
    for value in next(iter(rows.values())):
        some = next(found[value] for found in rows.values() if value in found)
        line = [
            value,
            *_counts(some),
            *(_cell(found[value], name) if value in found else "" for found in rows.values()),
        ]
        if raters:
            line += [_cell(some, "alpha_raters"), _span(published.get(value, []))]
        lines.append(line)
    return grid((*BY_VALUE, *rows, *(("raters", "published") if raters else ())), lines)


def _counts(row: Agreement) -> tuple[str, str]:
    unscored = f" (+{row.unscored} unscored)" if row.unscored else ""
    return f"{row.labels}{unscored}", str(row.broken)


def _cell(row: Agreement, name: str) -> str:
    figure, interval = getattr(row, name), row.intervals.get(name)
    if figure is None:
        return ""
    return f"{figure:.2f}" + (f" ({interval.low:.2f} to {interval.high:.2f})" if interval else "")


def _span(alphas: Sequence[float]) -> str:
    return f"{min(alphas):.2f} to {max(alphas):.2f}" if alphas else ""


def _published(one: Published) -> tuple[str, ...]:
    figures = (one.metrics[name] for name in ("accuracy", "precision", "recall", "f1_score"))
    return one.judge, *(f"{figure:.3f}" for figure in figures), one.id


def _source(record: Record) -> str:
    judge, cost = record["settings"]["judge"], record["cpu"]
    spent = (
        f" {cost['seconds'] / cost['calls']:.2f} CPU seconds a call, over {cost['calls']} calls."
        if cost["calls"]
        else ""
    )
    return f"{NAMES.get(judge, judge)}:{spent} {source(record)}"
