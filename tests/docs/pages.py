"""The pages that people read, and what can be tried in them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
SHELL = ("bash", "sh", "console")


def name(page: Path) -> str:
    """As one says it: ``docs/sal.md``."""
    return page.relative_to(ROOT).as_posix()


def tokens(page: Path) -> list[Token]:
    """What stands in it, in order, blocks only."""
    return parse(page.read_text())


@cache
def parse(text: str) -> list[Token]:
    """The blocks of a page's text; several tests ask for those of one page."""
    return MarkdownIt().enable("table").parse(text)


def inline(page: Path) -> Iterator[Token]:
    """The words, code spans, links and pictures of a page."""
    for token in tokens(page):
        yield from token.children or []


def blocks(page: Path, *languages: str) -> list[str]:
    """Its fenced blocks in these languages, each below as many empty lines as stand before it in the page."""
    fences = [token for token in tokens(page) if token.type == "fence" and token.info.strip() in languages]
    return ["\n" * (token.map[0] + 1) + token.content for token in fences if token.map]


def anchors(page: Path) -> set[str]:
    """Where a link can lead to in it, as GitHub and MyST name headings."""
    found = tokens(page)
    titles = [found[at + 1].content for at, token in enumerate(found) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
