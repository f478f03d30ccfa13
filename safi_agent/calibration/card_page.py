"""A calibration card as a table, a page of Markdown and a part of a page of HTML."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from safi_agent.calibration.card import Agreement, Card, Faculty

FIGURES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "alpha": "α",
    "alpha_scores": "α of scores",
    "alpha_raters": "α of raters",
}
COUNTS = ("value", "judge", "labels", "broken", "found", "missed", "wrongly")


def write_card(card: Card, path: str | Path) -> Path:
    """Write a card, and beside it a page in Markdown, whose path is returned. Existing files are replaced.

    Raises:
        OSError: a file cannot be written.
    """
    path = Path(path)
    page = path.with_suffix(".md")
    for file, text in ((path, card.model_dump_json(indent=1) + "\n"), (page, to_markdown(card))):
        part = file.with_name(f"{file.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    return page


class Table(NamedTuple):
    """Headings, and the cells of each row; without figures that no row has."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def table(agreements: Sequence[Agreement]) -> Table:
    """The rows of a card as text."""
    names = [name for name in FIGURES if any(getattr(row, name) is not None for row in agreements)]
    rows = [
        (
            row.value,
            row.faculty.title(),
            f"{row.labels:,}" + (f" (+{row.unscored:,} unscored)" if row.unscored else ""),
            f"{row.broken:,}",
            f"{row.true_positives:,}",
            f"{row.false_negatives:,}",
            f"{row.false_positives:,}",
            *(_cell(row, name) for name in names),
        )
        for row in agreements
    ]
    return Table((*COUNTS, *(FIGURES[name] for name in names)), rows)


def _cell(row: Agreement, name: str) -> str:
    """A figure with its interval; empty if it is undefined."""
    figure = getattr(row, name)
    if figure is None:
        return ""
    interval = row.intervals.get(name)
    return f"{figure:.2f}" + (f" ({interval.low:.2f} to {interval.high:.2f})" if interval else "")


def about(card: Card) -> list[str]:
    """Sentences on what was measured, how, and on what."""
    names = card.judges
    return [
        f"Will: {_model(card, 'will')}. Conscience: {_model(card, 'conscience')}, calls: {names.get('calls', '')}, "
        f"scores: {names.get('scores', '')}.",
        f"{card.labels:,} labels on {card.answers:,} answers to {card.prompts:,} prompts in {card.labels_file}, whose "
        f"SHA-256 is {card.labels_sha256}.",
        f"Value set {card.value_set}, fingerprint {names.get('values', '')}; SHA-256 of the prompts "
        f"{names.get('prompts', '')}.",
        f"A value counts as broken if the Conscience's score × confidence is below {card.threshold:.3f}, which gives "
        f"the largest recall + specificity on {card.chosen_on:,} labels, those of half of the prompts (seed "
        f"{card.seed}). The Conscience's rows are of the other half, the Will's of all.",
        f"Unclear rulings of the Will, which are violations: {card.unclear:,}. Answers without a usable ledger: "
        f"{card.unusable:,}. Median seconds of a judgement: {card.seconds:.2f}.",
        "Broken: labels by which people call the value broken; found, missed: of these, by the judge; wrongly: called "
        "broken by the judge alone. Precision, recall and F1 are of broken values.",
        "α is Krippendorff's: nominal, of broken or not; of scores ordinal, of the mean human score and the "
        "Conscience's; of raters ordinal, of people among themselves. In brackets: 95 % intervals by a bootstrap over "
        "prompts.",
    ]


def _model(card: Card, faculty: Faculty) -> str:
    replied = card.models.get(faculty) or []
    return ", ".join(replied) or card.judges.get(faculty, "")


def to_markdown(card: Card) -> str:
    """The card as a page of Markdown."""
    origin = f"{card.created}, sal-lightning {card.version}."
    return page(f"Calibration of judges of {card.value_set}", origin, table(card.rows), (*about(card), *card.warnings))


def page(title: str, origin: str, cells: Table, notes: Iterable[str]) -> str:
    """A page of Markdown: a title, a line, a table and a list of sentences; texts are escaped."""
    headings, rows = cells
    lines = [headings, ("---",) * len(headings), *rows]
    body = "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines)
    listed = "\n".join(f"* {_markdown(note)}" for note in notes)
    return f"# {_markdown(title)}\n\n{origin}\n\n{body}\n\n{listed}\n"


def _markdown(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def to_html(card: Card, others: Sequence[str] = ()) -> str:
    """The card as a fragment of HTML, with all texts escaped; ``others`` are further sentences, shown first."""
    headings, rows = table(card.rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in rows)
    notes = "".join(f"<li>{escape(sentence)}</li>" for sentence in (*others, *card.warnings, *about(card)))
    return f'<div class="calibration"><table><tr>{head}</tr>{body}</table></div><ul class="notes">{notes}</ul>'
