"""What a measurement leaves: a record, its text in the terminal, and the part of a page that is written from it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from experiments.filing import Record, save
from experiments.pages import rewrite


class Spread(NamedTuple):
    """The median of some ratios, the least and the greatest."""

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
    """File the record, print its text, and fill the marks of a page with it where one is named."""
    save(record, file)
    print(text)
    if page:
        rewrite(page, mark, text)
