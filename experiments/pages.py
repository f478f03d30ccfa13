"""Blocks of a page that are written from results, between marks; the rest of the page is unchanged."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.filing import write_whole


def fill(page: str, name: str, text: str) -> str:
    r"""Replace the text between the marks of a name, which are appended to the page if missing.

    >>> fill("a <!-- cost -->old<!-- /cost --> b", "cost", "new\n")
    'a <!-- cost -->\n\nnew\n\n<!-- /cost --> b'
    >>> fill("a\n", "cost", "new\n")
    'a\n\n<!-- cost -->\n\nnew\n\n<!-- /cost -->\n'
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in page:
        page = f"{page.rstrip()}\n\n{start}{end}\n".lstrip()
    before, _, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not closed:
        raise ValueError(f"Expected a page with {end} after {start}, got one without.")
    return f"{before}{start}\n\n{text}\n{end}{after}"


def rewrite(file: Path, name: str, text: str) -> None:
    """Replace the text between the marks of a name in a file."""
    page = file.read_text() if file.is_file() else ""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, fill(page, name, text).encode())


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A Markdown table.

    >>> grid(["a", "b"], [["1", "2"]])
    '| a | b |\n| --- | --- |\n| 1 | 2 |\n'
    """
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, ("---",) * len(headings), *rows))
