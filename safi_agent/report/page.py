"""The report of a log: one HTML file that makes no network requests.

Texts of a log are untrusted and are never put into markup: records are embedded as JSON that cannot end its element,
and the page's script inserts them as text nodes only. The page's content security policy forbids all other scripts and
all requests. ``review.js``, ``review.html`` and ``review.css`` are static parts of the page.
"""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safi_agent.calibration.card import FACULTIES, Card, read_card
from safi_agent.calibration.card_page import to_html
from safi_agent.report import figures, local_judge
from safi_agent.report.entries import REASONS, Entry
from safi_agent.report.review import Review, review
from safi_agent.report.seal import TITLES, Seal
from safi_agent.unicode_text import many
from sal_page import Section, render

MOST_TEXT = 20_000  # characters per text of a record
MOST_BYTES = 30_000_000  # for all records together, the newest first
MOST_DEEP = 20  # nesting levels of a record
MOST_NAME = 100  # characters of a model's name
LABELLED = ("userPrompt", "finalOutput")  # texts of a label, which must be whole
INSTALL = 'The report needs plotly: pip install "sal-lightning[report]".'
COUNTS = '<div id="tiles"></div><div id="keys" class="chips" role="group" aria-label="Memory keys in the plots"></div>'
TRENDS = "Lines show means over consecutive turns; each × is one turn beyond the dotted threshold."
LEDGER = "Mean score over consecutive lines of the log: 1 affirms the value, −1 violates it; gaps have no score."


def write_page(
    log: str | Path,
    to: str | Path,
    newest: int = 500,
    card: str | Path | None = None,
    seal: Seal | None = None,
    **thresholds: float,
) -> Review:
    """Read a log and write its report.

    Args:
        log: path of the log.
        to: path of the report, which ends in .html; an existing file is replaced.
        newest: number of newest turns, and of newest turns to review, that are shown in full.
        card: path of a calibration card, of ``safi calibrate``, to show too.
        seal: the result of a verification of the log, to show at the top.
        thresholds: ``review_below`` and ``drift_above``; the defaults are 6 and 0.4, as in the chain.

    Returns:
        The contents of the report.

    Raises:
        ValueError: the log does not exist or has no record, ``to`` is the log, does not end in .html or its folder
            does not exist, or ``card`` is not a card.
        ImportError: plotly is not installed.
    """
    to = Path(to)
    if not to.absolute().parent.is_dir() or to.is_dir():
        raise ValueError(f"to: expected a file in an existing folder, got {str(to)!r}.")
    if to.suffix != ".html":  # so that a mistake cannot overwrite a log or a key
        raise ValueError(f"to: expected a file that ends in .html, got {str(to)!r}.")
    if to.resolve() == Path(log).resolve():
        raise ValueError(f"to: expected another file than the log, got {str(to)!r}.")
    shown = None if card is None else read_card(card)
    contents = review(log, newest, **thresholds)
    text = page(contents, shown, seal)
    to.touch(mode=0o600)  # the report is as confidential as the log, which only its owner can read
    to.write_text(text, encoding="utf-8")
    return contents


def page(contents: Review, card: Card | None = None, seal: Seal | None = None) -> str:
    """Render the report as HTML, with a calibration card and the result of a verification if they are given."""
    if find_spec("plotly") is None:
        raise ImportError(INSTALL)
    shown = within([to_json(entry) for entry in contents.entries()], MOST_BYTES)
    ledger = figures.ledger(contents)
    data = {
        "counts": counts(contents),
        "keys": figures.keys(contents),
        "others": len(contents.keys) - len(figures.keys(contents)),
        "reasons": [{"id": reason, "name": name} for reason, name in REASONS.items()],
        "ledger": {"narrow": ledger.narrow, "wide": ledger.wide},
        "records": shown,
    }
    script = f'<script type="application/json" id="data">{embedded(data)}</script>'
    calibration = () if card is None else (calibration_section(contents, card),)
    sections = (
        Section(
            "Counts", wide=True, markup=f"<style>{_asset('review.css')}</style>{seal_markup(seal)}{COUNTS}{script}"
        ),
        Section("Spirit score", TRENDS, (figures.scores(contents),)),
        Section("Drift", TRENDS, (figures.drifts(contents),)),
        Section("Ledger, value by value", LEDGER, (ledger.figure,), wide=True),
        *local_judge.section(contents.local),
        *calibration,
        Section("To review", wide=True, markup=_asset("review.html")),
    )
    return render(f"Audit of {contents.name}", about(contents, shown), sections, _asset("review.js"))


def seal_markup(seal: Seal | None) -> str:
    """The result of a verification, with the time at which it was made; a page alone proves nothing."""
    if seal is None:
        return ""
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    again = f"Checked {at}, when this page was written; safi verify checks the log itself."
    return f'<p id="seal" class="{seal.state}"><b>{TITLES[seal.state]}</b> {escape(seal.text)} <span>{again}</span></p>'


def calibration_section(contents: Review, card: Card) -> Section:
    """The card, after a sentence for each judge's model in the log that the card is not of."""
    measured = {faculty: {*card.models.get(faculty, ()), card.judges.get(faculty)} for faculty in FACULTIES}
    others = [
        f"Of other judges: {many(turns, 'turn')} of this log had {name[:MOST_NAME]!r} as {faculty.title()}, of which "
        "the card says nothing."
        for faculty in FACULTIES
        for (judge, name), turns in contents.models.items()
        if judge == faculty and name not in measured[faculty]
    ]
    return Section("Agreement of the judges with people", wide=True, markup=to_html(card, others))


def embedded(data: Any) -> str:
    r"""JSON for a script element; characters that could end the element or open another are escaped.

    >>> embedded({"a": "</script><!--"})
    '{"a":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def to_json(entry: Entry) -> dict[str, Any]:
    """A turn as JSON for the page: the fields to search and sort by, and the clipped record."""
    return {
        "line": entry.place,
        "key": entry.key,
        "turn": entry.turn,
        "time": entry.time,
        "score": entry.score,
        "drift": entry.drift,
        "reasons": entry.reasons,
        "cut": any(_is_long(entry.record.get(name)) for name in LABELLED),
        "record": clipped(entry.record),
    }


def _is_long(text: object) -> bool:
    return isinstance(text, str) and len(text) > MOST_TEXT


def clipped(part: Any, deep: int = 0) -> Any:
    """A copy with texts cut to 20 000 characters and nesting to 20 levels, and None for numbers that are not finite."""
    if isinstance(part, str) and len(part) > MOST_TEXT:
        return f"{part[:MOST_TEXT]}…[+{len(part) - MOST_TEXT} characters]"
    if isinstance(part, float) and not math.isfinite(part):
        return None
    if isinstance(part, Mapping | list) and deep == MOST_DEEP:
        return "…"
    if isinstance(part, Mapping):
        return {clipped(name): clipped(item, deep + 1) for name, item in part.items()}
    if isinstance(part, list):
        return [clipped(item, deep + 1) for item in part]
    return part


def within(records: Iterable[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The records that fit into ``most`` bytes of JSON together, taken in order."""
    kept: list[dict[str, Any]] = []
    for record in records:
        size = len(embedded(record))
        if size <= most:
            kept.append(record)
            most -= size
    return kept


def counts(contents: Review) -> list[dict[str, Any]]:
    """The counts at the top of the page, over the whole log."""
    named = {
        "turns": contents.turns,
        "approved": contents.counts["decision:approve"],
        "refused": contents.counts["violation"],
        **({"violations in shadow mode": shadow} if (shadow := contents.counts["shadow"]) else {}),
        **({"not in the sample": left_out} if (left_out := contents.counts["not_drawn"]) else {}),
        "failed audits": contents.counts["audit_failed"],
        "drift alerts": contents.counts["drift"],
        "to review": contents.flagged,
    }
    return [{"name": name, "number": number} for name, number in named.items()]


def about(contents: Review, shown: list[dict[str, Any]]) -> str:
    """The paragraph that describes what the page contains and omits."""
    all_turns = f"{'all ' if contents.turns > 1 else ''}{many(contents.turns, 'turn')}"
    older = contents.flagged - sum(bool(turn["reasons"]) for turn in shown)
    parts = [
        f"{contents.first[:10]} to {contents.last[:10]}." if contents.first else "",
        f"Counts and plots are of {all_turns}; {len(shown):,} can be read below: the newest, and the newest to "
        f"review{f' ({older:,} older ones are only counted)' if older else ''}.",
        f"Lines that could not be read: {contents.unread:,}." if contents.unread else "",
    ]
    return " ".join(filter(None, parts))


def _asset(name: str) -> str:
    return files("safi_agent.report").joinpath(name).read_text(encoding="utf-8")
