"""Write the log: one JSON object per line, one line per turn, each written exactly once, as a hash chain."""

import logging
import os

from filelock import FileLock
from typing_extensions import override

from safi_agent.errors import LogError
from safi_agent.fork_safety import ForkSafeLock, Stage
from safi_agent.log.anchors import checked_turns, make_anchor
from safi_agent.log.hash_chain import Tip, seal
from safi_agent.log.key import find_key, key_file, new_key, write_key_file
from safi_agent.log.path import refuse_other_files
from safi_agent.log.reconciliation import find_other_path
from safi_agent.log.recovery import find_end
from safi_agent.log.rotation import rotate
from safi_agent.store import Anchor, Store
from safi_agent.store.log_state import mark_logged, read_unlogged

log = logging.getLogger("safi_agent")
LOCK_TIMEOUT = 10.0  # seconds for which another process may hold the log


class _WriteLock(ForkSafeLock):
    """One thread of this process writes at a time, and one process on each log."""

    def __init__(self) -> None:
        super().__init__(Stage.LOG)
        self._files: dict[str, FileLock] = {}

    def file_lock(self, path: str) -> FileLock:
        """The inter-process lock of a log, released first in case an interrupt left it locked."""
        lock = self._files.setdefault(path, FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT, thread_local=False))
        lock.release(force=True)
        return lock

    @override
    def after_fork(self) -> None:
        super().after_fork()
        self._files = {}  # the parent's locks are not the child's


_write_lock = _WriteLock()


def write(store: Store, path: str, most: int | None = None) -> list[str]:
    """Append the committed records that are not in the log yet; returns the ids of their turns.

    The store's anchor has the length of the log and its last line at the last write. Later lines come from a process
    that died before it could update the anchor: complete lines of the chain count as written, an incomplete one is
    truncated. A log of ``most`` bytes or more is rotated, and the chain continues in a new file.
    """
    if not path:
        return []
    try:
        with _write_lock.lock, _write_lock.file_lock(path):
            anchor, waiting = read_unlogged(store, path)
            if waiting:
                _append(store, path, anchor, waiting, most)
    except (OSError, LogError, ValueError) as error:
        log.error("The log %s could not be written (%s); its lines are kept in the store until it can.", path, error)
        return []
    return [turn_id for turn_id, _ in waiting]


def flush(store: Store, path: str, most: int | None = None) -> list[str]:
    """The same, but without touching the log if there is nothing to write."""
    return write(store, path, most) if path and read_unlogged(store, path)[1] else []


def _append(store: Store, path: str, anchor: Anchor | None, waiting: list[tuple[str, str]], most: int | None) -> None:
    existing_key = _key(path, anchor)
    key = existing_key or new_key()
    turns = 0
    if anchor:
        turns = checked_turns(path, anchor, key)
    else:
        refuse_other_files(path)
        anchor = _of_copy(store, path, key)
    if most and anchor and _size(path) == anchor.size >= most:  # the store has recorded all of it
        rotate(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        tip, logged = find_end(descriptor, path, anchor, key)
        if existing_key is None:
            write_key_file(path, key)
        for turn_id, record in waiting:
            if turn_id not in logged:
                tip = _write(descriptor, record, tip, key)
        new_anchor = make_anchor(path, os.fstat(descriptor).st_size, tip, turns + len(waiting), key)
        mark_logged(store, path, [turn_id for turn_id, _ in waiting], new_anchor)
    finally:
        os.close(descriptor)


def _key(path: str, anchor: Anchor | None) -> bytes | None:
    """The key of this log; None if its chain has not begun."""
    key = find_key(path)
    if anchor and key is None:
        raise LogError(
            f"the key with which it was begun is missing; expected it in the environment or {key_file(path)}"
        )
    return key


def _of_copy(store: Store, path: str, key: bytes) -> Anchor | None:
    """The anchor of a log that this store wrote at another path, so that a truncated copy is not continued.

    Raises:
        LogError: the store's anchor for the other path was changed.
    """
    if (original := find_other_path(store, path, key)) is None:
        return None
    checked_turns(*original, key)
    return original[1]


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else -1


def _write(descriptor: int, record: str, tip: Tip, key: bytes) -> Tip:
    line, tip = seal(record, tip, key)
    start = os.fstat(descriptor).st_size
    if os.write(descriptor, line) < len(line):  # the disk is full: remove the partial line
        os.ftruncate(descriptor, start)
        raise OSError("no space left for a complete line")
    return tip
