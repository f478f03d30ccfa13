"""Remove from a log the contents of turns that are erased in its store. Lines keep their places, lengths and seals."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from safi_agent.contents import has_contents
from safi_agent.errors import LogError
from safi_agent.log.hash_chain import erase_line, record_of
from safi_agent.log.overwrite import Change, finish_overwriting, overwrite
from safi_agent.log.rotation import lines, log_files
from safi_agent.log.tree_files import read_turn_id
from safi_agent.log.verify import open_files
from safi_agent.log.writer import flush, lock_log
from safi_agent.record import utc_now
from safi_agent.store import Store
from safi_agent.store.erasure import AT_ONCE, add_record, expected_lines, find_erased, open_erasures, recorded_turns
from safi_agent.unicode_text import many


class _Line(NamedTuple):
    start: int
    text: bytes
    turn_id: str


def erase_lines(store: Store, log: str) -> int:
    """Write the records of erasures to a log, and remove from it the contents of turns that are erased in the store.

    Other processes may write meanwhile. Their new lines are not read.

    Args:
        store: the store that wrote the log.
        log: the path of the log. Its full files are included.

    Returns:
        The number of lines whose contents were removed.

    Raises:
        LogError: the records could not be written, or lines of turns to be erased are missing; the others are erased.
        OSError: a file cannot be read or written, or another process holds the log's lock.
    """
    count, recorded = 0, recorded_turns(store, log)
    missing = set() if any(file.stat().st_size == 0 for file in log_files(log)) else expected_lines(store, log)
    write_records(store, log)
    with ExitStack() as stack:
        # From here on, other processes write only records that they read after the erasure.
        with lock_log(log):
            finish_overwriting(log)
            files = [(file, os.fstat(file.fileno()).st_size) for _, file in open_files(stack, Path(log))]
        for file, size in files:
            found = _lines_with_contents(file, size, missing)
            while batch := list(islice(found, AT_ONCE)):
                erased = find_erased(store, [line.turn_id for line in batch])
                if changed := [line for line in batch if line.turn_id in erased]:
                    if copied := [line.turn_id for line in changed if line.turn_id not in recorded]:
                        add_record(store, log, copied, utc_now())
                        recorded.update(copied)
                    write_records(store, log)
                    with lock_log(log):
                        name = _current_name(log, file)
                        overwrite(log, [Change(name, start, erase_line(text)) for start, text, _ in changed])
                    count += len(changed)
    if missing:
        raise LogError(
            f"it does not contain the lines of {many(len(missing), 'erased turn')} any more: put the full files back "
            f"that were moved away, or an empty file such as {Path(log).name}.1 in their place if they were deleted"
        )
    return count


def write_records(store: Store, log: str) -> None:
    """Write the records of erasures to the log, which precedes the removal of contents from its lines.

    Raises:
        LogError: they could not be written.
    """
    flush(store, log)
    if any(erasure.log == log and not erasure.logged for erasure in open_erasures(store)):
        raise LogError("the record of the erasure could not be written; the logger 'safi_agent' has the reason")


def _lines_with_contents(file: BinaryIO, size: int, missing: set[str]) -> Iterator[_Line]:
    """The lines that begin within the first ``size`` bytes and have contents. Turns found leave ``missing``."""
    start = 0
    for text in lines(file):
        if start >= size:
            return
        if missing:
            missing.discard(read_turn_id(text))
        if text.endswith(b"\n") and has_contents(record_of(text)):
            yield _Line(start, text, read_turn_id(text))
        start += len(text)


def _current_name(log: str, file: BinaryIO) -> str:
    """The name of an open file of the log, which may have been renamed since it was opened."""
    status = os.fstat(file.fileno())
    for path in log_files(log):
        if os.path.samestat(path.stat(), status):
            return path.name
    raise LogError(f"a file of {log} was moved away while it was read")
