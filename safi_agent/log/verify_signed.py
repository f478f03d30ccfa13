"""Verify a log with public keys alone: neither the store nor the key of the hash chain is needed.

The roots of the log's Merkle tree are computed from its lines and compared with signed checkpoints. This decides
whether the log is as it was signed. ``LOG.tree``, if it leads to the signed root, locates changed lines.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from safi_agent.errors import LogError
from safi_agent.log.checkpoint import Checkpoint, checkpoint_file, line_hash, open_checkpoint, read_note
from safi_agent.log.hash_chain import Seal
from safi_agent.log.merkle import HASH_BYTES, append, node_count, root_of
from safi_agent.log.rotation import lines
from safi_agent.log.signing_keys import PublicKey
from safi_agent.log.tree_files import Tree, read_tree
from safi_agent.log.verify import (
    MOST_FAULTS,
    PAUSE,
    ChainVerifier,
    Expected,
    Fault,
    Verdict,
    last_seal,
    open_files,
    read_rest,
)

PAUSES = 10  # for which a line waits for its checkpoint


class SignedVerdict(NamedTuple):
    """The verdict, the checkpoint against which the log was verified, and the key that signed it; None if unusable."""

    verdict: Verdict
    checkpoint: Checkpoint | None
    key: PublicKey | None


class _Signed(NamedTuple):
    """A checkpoint, the key that signed it, and its file."""

    checkpoint: Checkpoint
    key: PublicKey
    file: str


def verify_signed(
    log: str | Path, keys: Sequence[PublicKey], exported: Sequence[Path] = (), first: int = 1
) -> SignedVerdict:
    """Read all files of a log, one line at a time, and check them against its checkpoint and exported ones.

    Every line has to be covered by a checkpoint, except those that are added while the log is read.

    Args:
        log: path of the log; rotated files beside it are included.
        keys: the public keys, one of which must have signed each checkpoint.
        exported: files of earlier checkpoints, which the log has to extend.
        first: number of the first line, if earlier files were moved away; this needs ``LOG.tree``.

    Raises:
        FileNotFoundError: there is no checkpoint.
        LogError: a checkpoint is not signed by any of the keys, or ``LOG.tree`` is needed and unusable.
        OSError: a file cannot be read.
    """
    before = read_note(checkpoint_file(log))
    verdict = _verify_once(log, keys, exported, first)
    if verdict.verdict.erased and verdict.verdict.faulty and read_note(checkpoint_file(log)) != before:
        verdict = _verify_once(log, keys, exported, first)  # lines may have been erased and recorded while it was read
    return verdict


def _verify_once(log: str | Path, keys: Sequence[PublicKey], exported: Sequence[Path], first: int) -> SignedVerdict:
    with ExitStack() as stack:
        files, note = _snapshot(stack, Path(log))
        notes = {str(checkpoint_file(log)): note} if note is not None else {}
        notes |= {str(file): file.read_bytes() for file in exported}
        if not notes:
            raise FileNotFoundError(f"expected a checkpoint in {str(checkpoint_file(log))!r}, found none.")
        signed, faults = _open_all(notes, keys)
        if not signed:
            return SignedVerdict(Verdict(tuple(faults), len(faults), 0, 0, None), None, None)
        newest = max(signed, key=lambda one: one.checkpoint.size)
        faults += [
            Fault(one.file, 0, f"is of another log: expected the origin {newest.checkpoint.origin}")
            for one in signed
            if one.checkpoint.origin != newest.checkpoint.origin
        ]
        reader = _SignedReader(log, newest, signed, first)
        for name, file, size in files:
            reader.read_file(name, file, size)
    verdict = reader.finish()
    faults = [*verdict.faults, *faults]
    count = verdict.faulty + len(faults) - len(verdict.faults)
    verdict = verdict._replace(faults=tuple(faults[:MOST_FAULTS]), faulty=count)
    return SignedVerdict(verdict, newest.checkpoint, newest.key)


def _open_all(notes: Mapping[str, bytes], keys: Sequence[PublicKey]) -> tuple[list[_Signed], list[Fault]]:
    signed, faults = [], []
    for file, content in notes.items():
        try:
            signed.append(_Signed(*open_checkpoint(content, keys), file))
        except LogError as error:
            raise LogError(f"{file}: {error}.") from None
        except ValueError as error:
            faults.append(Fault(file, 0, f"is not a checkpoint as it was signed: {error}"))
    return signed, faults


def _snapshot(stack: ExitStack, log: Path) -> tuple[list[tuple[str, BinaryIO, int]], bytes | None]:
    """The files of a log with their present sizes, and a checkpoint of at least these lines if one comes in time.

    A log that is rotated meanwhile is opened again, so that the files contain all lines of the checkpoint.
    """
    while True:
        with ExitStack() as attempt:
            files = [(name, file, os.fstat(file.fileno()).st_size) for name, file in open_files(attempt, log)]
            note = _await_checkpoint(log)
            current = files[-1][1] if files and files[-1][0] == str(log) else None
            if _is_current(log, current):
                stack.push(attempt.pop_all())
                return files, note


def _is_current(log: Path, opened: BinaryIO | None) -> bool:
    """Whether this file is the one at the log's path; None for no file."""
    try:
        status = log.stat()
    except FileNotFoundError:
        return opened is None
    return opened is not None and os.path.samestat(status, os.fstat(opened.fileno()))


def _await_checkpoint(log: Path) -> bytes | None:
    """The checkpoint of a log, after the last line is signed, or after some time."""
    seal = last_seal(log)
    for _ in range(PAUSES):
        note = read_note(checkpoint_file(log))
        if note is None or seal is None or _size(note) >= seal.line:
            break
        time.sleep(PAUSE)
    return note


def _size(note: bytes) -> int:
    """The size in a checkpoint that is not verified yet; 0 if there is none."""
    size = note.split(b"\n")[1:2]
    return int(size[0]) if size and size[0].isdigit() and len(size[0]) < 19 else 0


class _SignedReader:
    """Reads a log, computes the roots at the sizes of all checkpoints, and locates faults."""

    def __init__(self, log: str | Path, newest: _Signed, signed: Sequence[_Signed], first: int) -> None:
        self.log, self.newest, self.signed = str(log), newest.checkpoint, signed
        self.at = first - 1  # lines so far
        self.wanted = {one.checkpoint.size for one in signed}
        tree = read_tree(log)
        peaks = _peaks_of_leaves(tree, self.newest.size, {*self.wanted, self.at})
        self.locates = root_of(peaks.get(self.newest.size, [])) == self.newest.root
        if self.at and not (self.locates and self.at in peaks):
            raise LogError(f"expected the hashes of earlier lines in {log}.tree, since the first lines are elsewhere.")
        self.peaks = peaks[self.at] if self.at else []
        self.roots = {size: root_of(peaks[size]) for size in self.wanted if size <= self.at}
        self.verifier = ChainVerifier(
            self._is_signed(tree),
            Expected(self.newest.size, None, "the checkpoint"),
            first,
            "was changed, or is not signed",
        )

    def _is_signed(self, tree: Tree) -> Callable[[bytes, Seal], bool]:
        def is_signed(line: bytes, seal: Seal) -> bool:
            if not 1 <= seal.line <= self.newest.size:
                return False
            return not self.locates or _leaf(tree, seal.line - 1) == line_hash(line)

        return is_signed

    def read_file(self, name: str, file: BinaryIO, size: int) -> None:
        """Read the next file: all signed lines, and further ones that begin within the first ``size`` bytes."""
        self.verifier.begin_file(name)
        start = 0
        for text in lines(file):
            if self.at >= self.newest.size and start >= size:
                return  # added since
            line = text if text.endswith(b"\n") else text + read_rest(file)
            append(self.peaks, self.at, line_hash(line))
            self.at += 1
            start += len(line)
            if self.at in self.wanted and self.at not in self.roots:
                self.roots[self.at] = root_of(self.peaks)
            self.verifier.verify_line(line)

    def finish(self) -> Verdict:
        """Compare the roots."""
        self.verifier.finish(self.log)
        verdict = self.verifier.verdict()
        if verdict.faulty:
            return verdict
        faults = [
            Fault(self.log, 0, self._difference(one))
            for one in self.signed
            if self.roots.get(one.checkpoint.size) != one.checkpoint.root
        ]
        return verdict._replace(faults=tuple(faults), faulty=len(faults))

    def _difference(self, one: _Signed) -> str:
        if one.checkpoint == self.newest:
            return (
                f"its lines differ from the signed checkpoint in {one.file}; {self.log}.tree, which would show where, "
                "is missing or was changed"
            )
        size = one.checkpoint.size
        return f"does not extend the checkpoint of {size:,} lines in {one.file}: lines were changed since"


def _leaf(tree: Tree, index: int) -> bytes:
    """The hash of a leaf, from 0; shorter if the file does not have it."""
    start = HASH_BYTES * node_count(index)
    return bytes(tree.nodes[start : start + HASH_BYTES])


def _peaks_of_leaves(tree: Tree, size: int, wanted: Set[int]) -> dict[int, list[bytes]]:
    """The peaks at these sizes, computed from the leaf hashes in the tree's file; empty if it has too few."""
    if len(tree.nodes) < HASH_BYTES * node_count(size):
        return {}
    peaks: list[bytes] = []
    found = {0: list(peaks)}
    for index in range(size):
        append(peaks, index, _leaf(tree, index))
        if index + 1 in wanted:
            found[index + 1] = list(peaks)
    return found
