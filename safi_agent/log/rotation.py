"""Log rotation: full files ``LOG.1`` (the oldest), ``LOG.2``, …, and ``LOG``, to which lines are appended."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

LONGEST = 2**26  # bytes; a longer line is not ours, and is not read into memory at once


def full_files(log: str | Path) -> list[Path]:
    """The files that are full, the oldest first."""
    log = Path(log)
    suffixes = [
        (file.name.removeprefix(f"{log.name}."), file) for file in log.parent.glob("*") if file.name != log.name
    ]
    numbered = [(int(end), file) for end, file in suffixes if file.name == f"{log.name}.{end}" and _is_number(end)]
    return [file for _, file in sorted(numbered)]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0")


def log_files(log: str | Path) -> list[Path]:
    """All files of a log, in the order of their lines."""
    return [*full_files(log), *([Path(log)] if Path(log).is_file() else [])]


def rotate(log: str | Path) -> None:
    """Rotate the log: it becomes the last full file. The caller holds its lock."""
    last = max((int(file.name.rpartition(".")[2]) for file in full_files(log)), default=0)
    os.rename(log, f"{log}.{last + 1}")


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines from here on, each with its end; the last may have none."""
    return iter(partial(file.readline, LONGEST), b"")
