"""The log: one JSON object a line, one line a turn, each written whole and once."""

import json
import logging
import os
import threading
from pathlib import Path

from filelock import FileLock

from safi_agent.store import Store

log = logging.getLogger("safi_agent")
_flushing = threading.Lock()
PATIENCE = 10.0  # seconds for which another process may hold the log


def log_path(path: str | Path | None) -> str:
    """The log's full path, empty for none.

    Raises:
        TypeError: it is neither a path nor None.
        ValueError: its folder is not there, or it is a folder itself.
    """
    if path is None:
        return ""
    if not isinstance(path, str | Path):
        raise TypeError(f"log: expected a path or None, got {type(path).__name__}.")
    full = Path(path).absolute()
    if not full.parent.is_dir() or full.is_dir():
        raise ValueError(f"log: expected a file in a folder that is there, got {str(path)!r}.")
    return str(full)


def flush(store: Store, path: str) -> bool:
    """Append what was committed and is not in the log yet; whether that worked.

    The store knows how long the log was when it was last written. What stands after that was written by a process that
    died before it could say so: whole lines are counted as written, a torn one is cut off.
    """
    if not path or not store.unlogged(path)[1]:
        return True
    try:
        with _flushing, FileLock(f"{path}.lock", timeout=PATIENCE):
            size, waiting = store.unlogged(path)
            if not waiting:
                return True
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                there = _written_since(descriptor, size or 0)
                for turn_id, record in waiting:
                    if turn_id not in there:
                        _write(descriptor, record.encode("ascii") + b"\n")
                store.logged(path, [turn_id for turn_id, _ in waiting], os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
    except OSError as error:
        log.error("The log %s could not be written (%s); its lines wait in the store.", path, error)
        return False
    return True


def _write(descriptor: int, line: bytes) -> None:
    start = os.fstat(descriptor).st_size
    if os.write(descriptor, line) < len(line):  # the disk is full: half a line is no line
        os.ftruncate(descriptor, start)
        raise OSError("no room for a whole line")


def _written_since(descriptor: int, size: int) -> set[str]:
    """Ids in the lines after the first ``size`` bytes; a last line that is torn is cut off."""
    end = os.fstat(descriptor).st_size
    if end <= size:
        return set()
    os.lseek(descriptor, size, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        *lines, rest = file.read().split(b"\n")
    if rest:
        os.ftruncate(descriptor, end - len(rest))
    found = set()
    for line in lines:
        try:
            found.add(json.loads(line)["turnId"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
