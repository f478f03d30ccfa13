"""Output of a measurement: a JSON record, text in the terminal, and a section of a page."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from experiments.filing import Record, save
from experiments.pages import rewrite


class Spread(NamedTuple):
    """Median, minimum and maximum of ratios."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """
    >>> spread([1.0, 3.0, 2.0])
    Spread(median=2.0, least=1.0, most=3.0)
    """
    return Spread(median(values), min(values), max(values))


def publish(record: Record, file: Path, text: str, page: Path | None, mark: str) -> None:
    """Save the record, print its text, and write it into the block of a page if one is given."""
    save(record, file)
    print(text)
    if page:
        rewrite(page, mark, text)
