"""A card in the terminal: its table, then its sentences and warnings."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from safi_agent.cli.options import printable

if TYPE_CHECKING:
    from safi_agent.calibration.card import Agreement


def print_card(agreements: "Sequence[Agreement]", sentences: Iterable[str], warnings: Iterable[str]) -> None:
    """Print the rows of a card, then its sentences and warnings, without control characters."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from safi_agent.calibration.card_page import table

    shown = Table(box=None, padding=(0, 1, 0, 0))
    headings, rows = table(agreements)
    for i, name in enumerate(headings):
        shown.add_column(name, justify="right" if i > 1 else "left")
    for line in rows:
        shown.add_row(*(Text(printable(cell)) for cell in line))
    console = Console(highlight=False)
    console.print(shown)
    for sentence in (*sentences, *(f"Warning: {warning}" for warning in warnings)):
        console.print(Text(printable(sentence)))
