"""The page of a log: one HTML file that needs no network and asks for none.

Whatever the log holds may have been written by someone who wants it to run here. So no text of it is ever put into
markup: the records travel as JSON that cannot end its element, and the page's script sets them as plain text only. The
frame forbids the page every script but its own, and every request. ``review.js`` and its like are the page's own parts.
"""

import json
import math
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safi_agent.report import figures
from safi_agent.report.entries import REASONS, Entry
from safi_agent.report.review import Review, review
from sal_page import Section, render

MOST_TEXT = 20_000  # characters of one text of a record
MOST_BYTES = 30_000_000  # of all records together; the newest come first
MOST_DEEP = 20  # levels of a record's metadata
INSTALL = 'The page needs plotly: pip install "sal-lightning[report]".'
COUNTS = '<div id="tiles"></div><div id="keys" class="chips" role="group" aria-label="Memory keys in the plots"></div>'
TRENDS = "The line is a mean over stretches of turns; each × is one turn beyond the dotted threshold."
LEDGER = "Mean score over stretches of the log: 1 affirms the value, −1 breaks it, a gap is no score."


def write_page(log: str | Path, to: str | Path, newest: int = 500, **thresholds: float) -> Review:
    """Read a log and write its page; what was found comes back.

    Args:
        log: the log.
        to: a file that ends in .html, replaced where there is one.
        newest: how many of the newest turns, and of the newest turns to review, are on the page in full.
        thresholds: ``review_below`` and ``drift_above``; the chain's defaults are 6 and 0.4.

    Raises:
        ValueError: there is no such log, it has no record, or the page would replace it or has no folder to lie in.
        ImportError: plotly is not installed; the text names the install.
    """
    to = Path(to)
    if not to.absolute().parent.is_dir() or to.is_dir():
        raise ValueError(f"to: expected a file in a folder that is there, got {str(to)!r}.")
    if to.suffix != ".html":  # so that a slip replaces no log and no key
        raise ValueError(f"to: expected a file that ends in .html, got {str(to)!r}.")
    if to.resolve() == Path(log).resolve():
        raise ValueError(f"to: expected another file than the log, got {str(to)!r}.")
    found = review(log, newest, **thresholds)
    text = page(found)
    to.touch(mode=0o600)  # a page shows what the log does, and the log is its owner's alone
    to.write_text(text, encoding="utf-8")
    return found


def page(found: Review) -> str:
    """The page as one text."""
    if find_spec("plotly") is None:
        raise ImportError(INSTALL)
    shown = within([told(entry) for entry in found.entries()], MOST_BYTES)
    ledger = figures.ledger(found)
    data = {
        "counts": counts(found),
        "keys": figures.keys(found),
        "others": len(found.keys) - len(figures.keys(found)),
        "reasons": [{"id": reason, "name": name} for reason, name in REASONS.items()],
        "ledger": {"narrow": ledger.narrow, "wide": ledger.wide},
        "records": shown,
    }
    kept = f'<script type="application/json" id="data">{embedded(data)}</script>'
    sections = (
        Section("Counts", wide=True, markup=f"<style>{_asset('review.css')}</style>{COUNTS}{kept}"),
        Section("Spirit score", TRENDS, (figures.scores(found),)),
        Section("Drift", TRENDS, (figures.drifts(found),)),
        Section("Ledger, value by value", LEDGER, (ledger.figure,), wide=True),
        Section("To review", wide=True, markup=_asset("review.html")),
    )
    return render(f"Audit of {found.name}", about(found, shown), sections, _asset("review.js"))


def embedded(data: Any) -> str:
    r"""JSON that may stand in a script element: no sign of it can end the element or open another.

    >>> embedded({"a": "</script><!--"})
    '{"a":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def told(entry: Entry) -> dict[str, Any]:
    """What the page holds of a turn: what it is found by, and the record with its longest texts cut."""
    return {
        "line": entry.place,
        "key": entry.key,
        "turn": entry.turn,
        "time": entry.time,
        "score": entry.score,
        "drift": entry.drift,
        "reasons": entry.reasons,
        "record": clipped(entry.record),
    }


def clipped(part: Any, deep: int = 0) -> Any:
    """The same with texts of at most 20 000 characters, 20 levels deep, and None for what JSON cannot hold."""
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
    """The records that fit in so many bytes together, the first before those after it."""
    kept: list[dict[str, Any]] = []
    for record in records:
        size = len(embedded(record))
        if size <= most:
            kept.append(record)
            most -= size
    return kept


def counts(found: Review) -> list[dict[str, Any]]:
    """The numbers at the top of the page; they are of the whole log."""
    named = {
        "turns": found.turns,
        "approved": found.counts["decision:approve"],
        "refused": found.counts["violation"],
        "failed audits": found.counts["audit_failed"],
        "drift alerts": found.counts["drift"],
        "to review": found.flagged,
    }
    return [{"name": name, "number": number} for name, number in named.items()]


def about(found: Review, shown: list[dict[str, Any]]) -> str:
    """What is on the page and what is not."""
    older = found.flagged - sum(bool(turn["reasons"]) for turn in shown)
    parts = [
        f"{found.first[:10]} to {found.last[:10]}." if found.first else "",
        f"Counts and plots are of all {found.turns:,} turns; {len(shown):,} can be read below: the newest, "
        f"and the newest to review{f' ({older:,} older ones are only counted)' if older else ''}.",
        f"Lines that could not be read: {found.unread:,}." if found.unread else "",
    ]
    return " ".join(filter(None, parts))


def _asset(name: str) -> str:
    return files("safi_agent.report").joinpath(name).read_text(encoding="utf-8")
