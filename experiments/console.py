"""Terminal output of experiments: a progress bar and tables."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from typing_extensions import override


class Ticker(Callback):
    """Advances a progress bar with every batch."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress.advance(self.task)


def bar(console: Console) -> Progress:
    """A progress bar with a count of steps and the remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table with headings."""
    shown = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if i else "left")
    for row in rows:
        # In a narrow terminal, the line breaks before the sign, not after it.
        shown.add_row(*(cell.replace("± ", "±") for cell in row))
    return shown
