"""Write the log: one JSON object per line, one line per turn, each written exactly once, as a hash chain.

If the environment has a signing key, each write ends with a signed checkpoint of all lines.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from filelock import FileLock
from typing_extensions import override

from safi_agent.errors import LogError
from safi_agent.fork_safety import ForkSafeLock, Stage
from safi_agent.log.anchors import checked_turns, make_anchor
from safi_agent.log.checkpoint import checkpoint_file, read_note
from safi_agent.log.hash_chain import Tip, seal
from safi_agent.log.key import find_key, key_file, new_key, write_key_file
from safi_agent.log.overwrite import resume_overwriting
from safi_agent.log.path import refuse_other_files
from safi_agent.log.reconciliation import find_other_path
from safi_agent.log.recovery import find_end
from safi_agent.log.rotation import rotate
from safi_agent.log.signing import SignedState, lines_to_sign, read_state, sign_lines
from safi_agent.log.signing_keys import VARIABLE, SigningKey, given_signing_key
from safi_agent.log.tree_files import LogLine
from safi_agent.store import Anchor, Store
from safi_agent.store.log_state import mark_logged, read_anchor, read_unlogged

log = logging.getLogger("safi_agent")
LOCK_TIMEOUT = 10.0  # seconds for which another process may hold the log
LOCK_POLL = 0.01  # seconds between attempts to lock a log that another process holds


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


@contextmanager
def lock_log(path: str) -> Iterator[None]:
    """Context manager: no other thread or process writes to this log.

    Raises:
        TimeoutError: another process holds the lock.
    """
    with _write_lock.lock, _write_lock.file_lock(path).acquire(poll_interval=LOCK_POLL):
        yield


class _Signatures:
    """What this process knows about the checkpoints of each log. Guarded by ``_write_lock``."""

    def __init__(self) -> None:
        self.states: dict[str, SignedState] = {}  # after the last checkpoint
        self.refused: dict[str, bytes | None] = {}  # the checkpoint after which a log cannot be signed
        self.reported: dict[str, str] = {}  # the last message, which is not repeated


_signatures = _Signatures()
_unfinished: dict[str, str] = {}  # why an erasure cannot be completed in each log, which is reported once


class _End(NamedTuple):
    """The end of a log: its last line, the number of the store's turns in it, and the lines that were just added."""

    tip: Tip
    turns: int
    added: list[LogLine]


def write(store: Store, path: str, most: int | None = None) -> list[str]:
    """Append the committed records that are not in the log yet, and sign; returns the ids of their turns.

    The store's anchor has the length of the log and its last line at the last write. Later lines come from a process
    that died before it could update the anchor: complete lines of the chain count as written, an incomplete one is
    truncated. A log of ``most`` bytes or more is rotated, and the chain continues in a new file.
    """
    if not path:
        return []
    try:
        with lock_log(path):
            anchor, waiting = read_unlogged(store, path)
            if waiting:
                _sign(store, path, _append(store, path, anchor, waiting, most))
            elif anchor is not None and _is_unsigned(path, anchor):
                _sign(store, path, anchor)
    except (OSError, LogError, ValueError) as error:
        log.error("The log %s could not be written (%s); its lines are kept in the store until it can.", path, error)
        return []
    return [turn_id for turn_id, _ in waiting]


def flush(store: Store, path: str, most: int | None = None) -> list[str]:
    """The same, but without touching the log if there is nothing to write or to sign."""
    if not path:
        return []
    anchor, waiting = read_unlogged(store, path)
    return write(store, path, most) if waiting or (anchor and _is_unsigned(path, anchor)) else []


def sign(store: Store | None, path: str, key: SigningKey) -> None:
    """Sign the lines of a log that are not signed yet, after the checks of ``lines_to_sign``.

    Args:
        store: the store that wrote the log. Default: it is not asked.
        path: the log.
        key: the key to sign with.

    Raises:
        LogError: a line cannot be signed, or the log's key is missing.
        OSError: a file cannot be read or written.
    """
    with lock_log(path):
        end, turns = None, 0
        if store is not None:
            if (anchor := read_anchor(store, path)) is None:
                raise LogError("this store did not write it; give the store that did, or use --without-store")
            end, turns = Tip(anchor.lines, anchor.mac), checked_turns(path, anchor, _existing_key(path))
        state = read_state(path, read_note(checkpoint_file(path)), key)
        if end is None or state.size < end.lines:
            sign_lines(path, key, state, lines_to_sign(path, _existing_key(path), state, end, store, turns))


def _append(store: Store, path: str, anchor: Anchor | None, waiting: list[tuple[str, str]], most: int | None) -> _End:
    existing_key = _key(path, anchor)
    key = existing_key or new_key()
    turns = 0
    if anchor:
        turns = checked_turns(path, anchor, key)
    else:
        refuse_other_files(path)
        anchor = _of_copy(store, path, key)
    _finish_overwriting(path)
    if most and anchor and _size(path) == anchor.size >= most:  # the store has recorded all of it
        rotate(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    added = []
    try:
        tip, logged = find_end(descriptor, path, anchor, key)
        if existing_key is None:
            write_key_file(path, key)
        for turn_id, record in waiting:
            if turn_id not in logged:
                line, tip = _write(descriptor, turn_id, record, tip, key)
                added.append(line)
        new_anchor = make_anchor(path, os.fstat(descriptor).st_size, tip, turns + len(waiting), key)
        mark_logged(store, path, [turn_id for turn_id, _ in waiting], new_anchor)
    finally:
        os.close(descriptor)
    return _End(tip, turns + len(waiting), added)


def _finish_overwriting(path: str) -> None:
    """Complete an erasure that was interrupted; lines are also appended if that is not possible in full files.

    Raises:
        OSError: the file to which lines are appended cannot be written.
    """
    errors = resume_overwriting(path)
    if (error := errors.get(os.path.basename(path))) is not None:
        raise error
    why = "; ".join(str(error) for error in errors.values())
    if why and _unfinished.get(path) != why:
        log.error(
            "Lines of the log %s could not be erased (%s); 'safi erase' continues once it is possible.", path, why
        )
    _unfinished[path] = why


def _recorded_end(path: str, anchor: Anchor) -> _End:
    """The end of a log as the store has recorded it; other stores may have written lines after it."""
    return _End(Tip(anchor.lines, anchor.mac), checked_turns(path, anchor, _existing_key(path)), [])


def _is_unsigned(path: str, anchor: Anchor) -> bool:
    """Whether there may be recorded lines that can be signed, as after a process that was killed."""
    try:
        if given_signing_key() is None:
            return False
        note = read_note(checkpoint_file(path))
    except (OSError, LogError, ValueError):  # reported with the next line
        return False
    state = _signatures.states.get(path)
    if path in _signatures.refused and _signatures.refused[path] == note:
        return False
    return state is None or state.note != note or state.size < anchor.lines


def _sign(store: Store, path: str, reached: _End | Anchor) -> None:
    """Sign all lines of a log up to this end. If that is not possible, they stay unsigned and the reason is logged."""
    known, note = _signatures, None
    try:
        note = read_note(checkpoint_file(path))
        if (key := given_signing_key()) is None:
            if note is not None:
                _report(path, f"it has a checkpoint, but this process has no key to sign: set {VARIABLE}_FILE")
            return
        if path in known.refused and known.refused[path] == note:
            return
        state = read_state(path, note, key, known.states.get(path))
        end = _recorded_end(path, reached) if isinstance(reached, Anchor) else reached
        if state.size > end.tip.lines and end.added:
            raise LogError(f"its checkpoint is of {state.size:,} lines, but it has {end.tip.lines:,}")
        if state.size >= end.tip.lines:
            known.states[path] = state
            return
        added: Iterable[LogLine] = end.added
        if state.size + len(end.added) != end.tip.lines:
            added = lines_to_sign(path, _existing_key(path), state, end.tip, store, end.turns)
        known.states[path] = sign_lines(path, key, state, added)
        known.reported.pop(path, None)
    except LogError as error:
        known.refused[path] = note
        _report(path, str(error))
    except (OSError, ValueError) as error:
        _report(path, str(error))


def _report(path: str, why: str) -> None:
    if _signatures.reported.get(path) != why:
        _signatures.reported[path] = why
        log.error("New lines of the log %s are not signed: %s.", path, why)


def _existing_key(path: str) -> bytes:
    if (key := find_key(path)) is None:
        raise LogError(f"its key is missing; expected it in the environment or {key_file(path)}")
    return key


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


def _write(descriptor: int, turn_id: str, record: str, tip: Tip, key: bytes) -> tuple[LogLine, Tip]:
    line, tip = seal(record, tip, key)
    start = os.fstat(descriptor).st_size
    if os.write(descriptor, line) < len(line):  # the disk is full: remove the partial line
        os.ftruncate(descriptor, start)
        raise OSError("no space left for a complete line")
    return LogLine(line, start, turn_id), tip
