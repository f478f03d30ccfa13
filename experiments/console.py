"""What an experiment shows in the terminal: one progress bar, one kind of table."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from typing_extensions import override


class Ticker(Callback):
    """Move a bar on by one with every batch."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress.advance(self.task)


def bar(console: Console) -> Progress:
    """A bar that counts steps and says how long it will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The rows under their headings."""
    shown = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if i else "left")
    for row in rows:
        # A narrow terminal breaks the line before the sign, not after it.
        shown.add_row(*(cell.replace("± ", "±") for cell in row))
    return shown
