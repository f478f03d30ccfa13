"""Overwrite lines of a log in place, so that a process or a machine that stops in between leaves no damaged line.

The new lines are first written to ``LOG.erasing`` and synchronized to the disk, then to their places. Whoever finds
this file repeats the second step, which changes nothing where it was done. A line keeps its length and its seal.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safi_agent.log.hash_chain import erase_line, read_seal


class Change(NamedTuple):
    """A line's new text, the name of its file in the folder of the log, and the offset of the line."""

    file: str
    start: int
    text: bytes


def pending_file(log: str | Path) -> Path:
    """The path of the changes that are being made to a log."""
    return Path(f"{log}.erasing")


def overwrite(log: str | Path, changes: Iterable[Change]) -> None:
    """Make these changes, after those of a process that was stopped. The caller holds the log's lock.

    Raises:
        OSError: a file cannot be written, or a line was changed after it was read; no line was changed by this call,
            unless writing failed in between, in which case the next call continues.
    """
    finish_overwriting(log)
    if not (changes := _unfinished(Path(log).parent, changes)):
        return
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
        OSError, ValueError: a file cannot be read or written. The changes are made in all others.
    """
    for error in resume_overwriting(log).values():
        raise error


def resume_overwriting(log: str | Path) -> dict[str, OSError]:
    """The same for callers that do not need all files: the error of each file that cannot be written, by its name.

    Raises:
        OSError, ValueError: the pending changes cannot be read.
    """
    pending, errors = pending_file(log), dict[str, OSError]()
    if not os.path.exists(pending):
        return errors
    changes = [Change(file, start, text.encode("ascii")) for file, start, text in json.loads(pending.read_bytes())]
    for name, of_file in _by_file(changes):
        path = pending.parent / name
        if not path.is_file():  # moved away meanwhile
            continue
        try:
            with path.open("r+b", buffering=0) as opened:
                for change in of_file:
                    if _is_place_of(change, opened):
                        _write(change, opened)
                _synchronize(opened)
        except OSError as error:
            errors[name] = error
    if not errors:
        pending.unlink()
    return errors


def _by_file(changes: Iterable[Change]) -> Iterable[tuple[str, list[Change]]]:
    by_file: dict[str, list[Change]] = {}
    for change in changes:
        by_file.setdefault(change.file, []).append(change)
    return by_file.items()


def _unfinished(folder: Path, changes: Iterable[Change]) -> list[Change]:
    """The changes that are not made yet.

    Raises:
        OSError: a file cannot be written, or a line is neither the one that was read nor the new one.
    """
    found = []
    for name, of_file in _by_file(changes):
        with (folder / name).open("r+b", buffering=0) as opened:
            for change in of_file:
                opened.seek(change.start)
                line = opened.read(len(change.text))
                if line == change.text:
                    continue
                if (erased := erase_line(line)) == change.text:
                    found.append(change)
                elif erased != line or read_seal(line) != read_seal(change.text):
                    raise OSError(f"a line of {folder / name} was changed after it was read")
    return found


def _write(change: Change, opened: Any) -> None:
    opened.seek(change.start)
    if opened.write(change.text) < len(change.text):
        raise OSError(f"no space left for a complete line in {opened.name}")


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
