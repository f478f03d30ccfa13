"""Sign a log: extend its Merkle tree by the lines that were written, and replace its checkpoint.

A line is signed only if its writer knows it: it was written just now, or the store has its record. A line that was
forged with the log's key alone is therefore not signed, also not after a process that was killed between a line and its
checkpoint. The new tree extends that of the last checkpoint, whose signature is verified first.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from safi_agent.errors import LogError
from safi_agent.log.checkpoint import (
    Checkpoint,
    checkpoint_file,
    is_origin_of,
    make_origin,
    open_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
    write_note,
)
from safi_agent.log.hash_chain import Tip, beginning, genuine, is_line_of, read_seal
from safi_agent.log.merkle import read_peaks, root_of
from safi_agent.log.signed_note import parse_note
from safi_agent.log.signing_keys import SigningKey, UnknownKeyError
from safi_agent.log.tree_files import (
    LogLine,
    extend_tree,
    files_from,
    read_first_line,
    read_lines,
    read_tree,
    rebuild_tree,
    write_tree,
)
from safi_agent.store import Store
from safi_agent.store.log_account import read_rows

AT_ONCE = 1000  # lines whose hashes are in memory, and turns in a query
CURE = "if another store wrote the rest, 'safi checkpoint --without-store' signs all lines of the hash chain"


class SignedState(NamedTuple):
    """The last checkpoint of a log as its file has it, and the peaks of its tree.

    ``note`` is None and ``size`` 0 if there is no checkpoint, or none that the key continues; then ``expected`` is the
    one that the new tree has to extend, and ``origin`` is empty if there is none.
    """

    note: bytes | None
    origin: str
    size: int
    peaks: list[bytes]
    expected: Checkpoint | None = None


def read_state(log: str, note: bytes | None, key: SigningKey, known: SignedState | None = None) -> SignedState:
    """The state of a log, from its checkpoint and its tree.

    Args:
        log: its path. The caller holds its lock.
        note: the content of its checkpoint's file.
        key: the key whose checkpoints are continued.
        known: the state after the last call in this process.

    Raises:
        LogError: the checkpoint was changed, or the log is not the one that was signed.
    """
    if known is not None and note == known.note:
        return known
    if note is None:
        return SignedState(None, "", 0, [])
    try:
        try:
            checkpoint, _ = open_checkpoint(note, key.accepted)
        except UnknownKeyError:  # by a key that is not continued: every line is checked again
            checkpoint = parse_checkpoint(parse_note(note).text)
            return SignedState(note, checkpoint.origin, 0, [], checkpoint)
    except ValueError as error:
        raise LogError(f"{checkpoint_file(log)}: {error}") from None
    first = read_first_line(log)
    if (known and known.origin not in ("", checkpoint.origin)) or not is_origin_of(checkpoint.origin, first):
        raise LogError(f"its checkpoint is of another log, {checkpoint.origin}")
    tree = read_tree(log)
    if tree.has_root(checkpoint.size, checkpoint.root):
        return SignedState(note, checkpoint.origin, checkpoint.size, read_peaks(checkpoint.size, tree.read))
    tree, peaks = rebuild_tree(log, checkpoint.size)  # its files are missing or damaged
    if root_of(peaks) != checkpoint.root:
        raise LogError("its lines are not as they were signed; 'safi verify --public-key' shows where")
    write_tree(log, 0, bytes(tree.nodes), bytes(tree.entries))
    return SignedState(note, checkpoint.origin, checkpoint.size, peaks)


def sign_lines(log: str, key: SigningKey, state: SignedState, added: Iterable[LogLine]) -> SignedState:
    """Add lines to a log's tree and sign a checkpoint of it.

    Raises:
        LogError: the tree does not extend the checkpoint that the state expects.
        OSError: a file cannot be written.
    """
    expected, origin, size, peaks = state.expected, state.origin, state.size, list(state.peaks)
    rest = iter(added)
    while batch := list(islice(rest, _until(size, expected))):
        before = size
        size, nodes, entries = extend_tree(peaks, size, batch)
        write_tree(log, before, nodes, entries)
        origin = origin or make_origin(key.public, batch[0].text)
        if expected is not None and size == expected.size and root_of(peaks) != expected.root:
            raise LogError(
                "its lines are not as another key has signed them; if that key is not yours, remove the checkpoint"
            )
    if expected is not None and size < expected.size:
        raise LogError(f"it has {size:,} lines, but its checkpoint is of {expected.size:,}")
    if size == state.size:
        return state
    note = sign_checkpoint(Checkpoint(origin, size, root_of(peaks)), key)
    write_note(checkpoint_file(log), note)
    return SignedState(note, origin, size, peaks)


def lines_to_sign(
    log: str, key: bytes, state: SignedState, end: Tip | None, store: Store | None, turns: int
) -> Iterator[LogLine]:
    """The lines after the last checkpoint, read from the log, and checked.

    Args:
        log: its path.
        key: the key of its hash chain.
        state: the last checkpoint.
        end: the end of the chain. Default: the last line of the log.
        store: the store that has to have all these lines. Default: the hash chain is checked alone.
        turns: the number of the store's turns in the log.

    Raises:
        LogError: a line is missing, is not one of the chain, or is not in the store.
    """
    found = _chained_lines(log, key, state.size, end)
    if store is None:
        return found
    if end is not None and end.lines != turns:
        raise LogError(f"it has {end.lines:,} lines, of which {turns:,} are turns of this store; {CURE}")
    return _stored_lines(store, found)


def _chained_lines(log: str, key: bytes, after: int, end: Tip | None) -> Iterator[LogLine]:
    """The lines after the first ``after`` ones, which have to continue the chain up to its end without a gap."""
    tip = None if after else beginning()
    for line in read_lines(files_from(log, max(after, 1))):
        if tip is not None and end is not None and tip.lines >= end.lines:
            break
        seal = read_seal(line.text)
        if tip is None:
            tip = Tip(seal.line, seal.mac) if seal and seal.line == after else None
            continue
        if seal is None or seal[:2] != (tip.lines + 1, tip.mac) or not genuine(line.text, seal, key):
            raise LogError(f"line {tip.lines + 1:,} is missing or not as it was written; 'safi verify' shows it")
        tip = Tip(seal.line, seal.mac)
        yield line
    if tip is None or (end is not None and tip != end):
        raise LogError("lines at its end are missing or not as they were written; 'safi verify' shows them")


def _stored_lines(store: Store, found: Iterable[LogLine]) -> Iterator[LogLine]:
    """These lines, each of which has to be in the store, and only once in the log."""
    seen: set[str] = set()
    rest = iter(found)
    while batch := list(islice(rest, AT_ONCE)):
        rows = read_rows(store, [line.turn_id for line in batch])
        for line in batch:
            if line.turn_id in seen or not _is_stored(line, rows.get(line.turn_id)):
                raise LogError(f"unsigned lines are not in the store, such as turn {line.turn_id!r}; {CURE}")
            seen.add(line.turn_id)
        yield from batch


def _is_stored(line: LogLine, row: Any) -> bool:
    seal = read_seal(line.text)
    return bool(seal and row is not None and row.record and is_line_of(row.record, seal, line.text))


def _until(size: int, expected: Checkpoint | None) -> int:
    """The number of lines to add at once, so that the tree has the size of the expected checkpoint once."""
    return min(AT_ONCE, expected.size - size) if expected is not None and size < expected.size else AT_ONCE
