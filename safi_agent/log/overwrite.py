"""Overwrite lines of a log in place, so that a process or a machine that stops in between leaves no damaged line.

The new lines are first written to ``LOG.erasing`` and synchronized to the disk, then to their places. Whoever finds
this file repeats the second step, which changes nothing where it was done. A line keeps its length and its seal.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safi_agent.log.hash_chain import read_seal


class Change(NamedTuple):
    """A line's new text, the name of its file in the folder of the log, and the offset of the line."""

    file: str
    start: int
    text: bytes


def pending_file(log: str | Path) -> Path:
    """The path of the changes that are being made to a log."""
    return Path(f"{log}.erasing")


def overwrite(log: str | Path, changes: Iterable[Change]) -> None:
    """Make these changes. The caller holds the log's lock.

    Raises:
        OSError: a file cannot be written.
    """
    draft = Path(f"{pending_file(log)}.new")
    content = json.dumps([[file, start, text.decode("ascii")] for file, start, text in changes])
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as opened:
        opened.write(content)
        _synchronize(opened)
    os.replace(draft, pending_file(log))
    _synchronize_folder(draft.parent)
    finish_overwriting(log)


def finish_overwriting(log: str | Path) -> None:
    """Make the changes of a process that was stopped, if there are any. The caller holds the log's lock.

    Raises:
        OSError, ValueError: a file cannot be read or written.
    """
    pending = pending_file(log)
    if not os.path.exists(pending):
        return
    by_file: dict[str, list[Change]] = {}
    for file, start, text in json.loads(pending.read_text(encoding="ascii")):
        by_file.setdefault(file, []).append(Change(file, start, text.encode("ascii")))
    for name, changes in by_file.items():
        path = pending.parent / name
        if not path.is_file():  # moved away meanwhile
            continue
        with path.open("r+b", buffering=0) as opened:
            for change in changes:
                if _is_place_of(change, opened):
                    opened.seek(change.start)
                    opened.write(change.text)
            _synchronize(opened)
    pending.unlink()


def _is_place_of(change: Change, opened: Any) -> bool:
    """Whether the line at this place has the seal of the new one, which a partial write has not changed either."""
    opened.seek(change.start)
    seal = read_seal(opened.read(len(change.text)))
    return seal is not None and seal == read_seal(change.text)


def _synchronize(opened: Any) -> None:
    opened.flush()
    os.fsync(opened.fileno())


def _synchronize_folder(folder: Path) -> None:
    if os.name != "posix":  # a folder cannot be opened elsewhere
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
