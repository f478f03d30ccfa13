"""The files of a log's Merkle tree: ``LOG.tree`` has its hashes, ``LOG.index`` the turn and the place of each line.

``LOG.tree`` contains the roots of all complete subtrees, 32 bytes each, in post-order (``merkle.node_position``): about
64 bytes a line. ``LOG.index`` has 16 bytes a line: the beginning of the SHA-256 of the turn's id, and the offset of the
line in its file. Both only grow. They save work and prove nothing: the root that they lead to is compared with a signed
checkpoint wherever they are read, and they can be computed again from the log at any time.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from safi_agent.log.checkpoint import line_hash
from safi_agent.log.hash_chain import read_seal
from safi_agent.log.merkle import HASH_BYTES, append, node_count, node_position, read_peaks, root_of
from safi_agent.log.rotation import LONGEST, lines, log_files

_ENTRY = struct.Struct(">8sQ")


class LogLine(NamedTuple):
    """A line of the log, the offset in its file, and the id of its turn, empty if it has none."""

    text: bytes
    start: int
    turn_id: str


class Tree(NamedTuple):
    """The contents of the two files, in memory or mapped."""

    nodes: bytes | bytearray | mmap.mmap
    entries: bytes | bytearray | mmap.mmap

    def read(self, level: int, index: int) -> bytes:
        """The root of a complete subtree.

        Raises:
            LookupError: it is not in the file.
        """
        start = node_position(level, index) * HASH_BYTES
        if len(node := self.nodes[start : start + HASH_BYTES]) < HASH_BYTES:
            raise LookupError(f"no hash of subtree {level}, {index}")
        return bytes(node)

    def has_root(self, size: int, root: bytes) -> bool:
        """Whether the first ``size`` leaves have this root, according to the peaks."""
        try:
            return root_of(read_peaks(size, self.read)) == root
        except LookupError:
            return False

    def find(self, turn_id: str, size: int) -> Iterator[tuple[int, int]]:
        """The index from 0 and the offset of lines that may be of this turn, among the first ``size``."""
        digest, at = _digest(turn_id), -1
        while (at := self.entries.find(digest, at + 1, size * _ENTRY.size)) >= 0:
            if at % _ENTRY.size == 0 and at + _ENTRY.size <= len(self.entries):
                yield at // _ENTRY.size, _ENTRY.unpack_from(self.entries, at)[1]


def tree_file(log: str | Path) -> Path:
    """The path of the hashes of a log's tree."""
    return Path(f"{log}.tree")


def index_file(log: str | Path) -> Path:
    """The path of the places of a log's lines."""
    return Path(f"{log}.index")


def read_tree(log: str | Path) -> Tree:
    """The two files of a log; empty where they do not exist."""
    return Tree(_content(tree_file(log)), _content(index_file(log)))


def extend_tree(peaks: list[bytes], size: int, added: Iterable[LogLine]) -> tuple[int, bytearray, bytearray]:
    """Add lines to a tree of ``size`` leaves, whose ``peaks`` are replaced.

    Returns:
        The new size, and what is to be appended to the two files.
    """
    nodes, entries = bytearray(), bytearray()
    for line in added:
        nodes += b"".join(append(peaks, size, line_hash(line.text)))
        entries += _ENTRY.pack(_digest(line.turn_id), line.start)
        size += 1
    return size, nodes, entries


def write_tree(log: str | Path, size: int, nodes: bytes | bytearray, entries: bytes | bytearray) -> None:
    """Write what follows the first ``size`` lines to the two files. What a killed process left there is replaced."""
    _write_at(tree_file(log), node_count(size) * HASH_BYTES, nodes)
    _write_at(index_file(log), size * _ENTRY.size, entries)


def rebuild_tree(log: str | Path, size: int) -> tuple[Tree, list[bytes]]:
    """The tree of the first ``size`` lines, computed from the log, and its peaks."""
    peaks: list[bytes] = []
    _, nodes, entries = extend_tree(peaks, 0, islice(read_lines(log_files(log)), size))
    return Tree(nodes, entries), peaks


def read_lines(files: Iterable[Path]) -> Iterator[LogLine]:
    """The lines of these files, each with its place."""
    for path in files:
        start = 0
        with path.open("rb") as file:
            for text in lines(file):
                yield LogLine(text, start, read_turn_id(text))
                start += len(text)


def files_from(log: str | Path, number: int) -> list[Path]:
    """The files of a log from the one that contains a line, counted from 1, as far as the first lines tell."""
    files = log_files(log)
    for at in reversed(range(1, len(files))):
        with files[at].open("rb") as file:
            seal = read_seal(file.readline(LONGEST))
        if seal and seal.line <= number:
            return files[at:]
    return files


def read_first_line(log: str | Path) -> bytes | None:
    """The first line of a log; None if it is in a file that was moved away."""
    for path in log_files(log)[:1]:
        with path.open("rb") as file:
            line = file.readline(LONGEST)
        seal = read_seal(line)
        return line if seal and seal.line == 1 else None
    return None


def read_line_at(log: str | Path, number: int, start: int) -> bytes:
    """What is at this offset of the file with this line, counted from 1; empty without a log."""
    for path in files_from(log, number)[:1]:
        with path.open("rb") as file:
            file.seek(start)
            return file.readline(LONGEST)
    return b""


def read_turn_id(line: bytes) -> str:
    """The id of a line's turn; empty if it has none."""
    try:
        turn_id = json.loads(line)["turnId"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return turn_id if isinstance(turn_id, str) else ""


def _digest(turn_id: str) -> bytes:
    return sha256(turn_id.encode("utf-8", "surrogatepass")).digest()[:8]


def _content(file: Path) -> bytes | mmap.mmap:
    try:
        with file.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # an empty file cannot be mapped
        return b""


def _write_at(file: Path, position: int, data: bytes | bytearray) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as opened:
        opened.seek(position)
        if opened.write(data) < len(data):
            raise OSError(f"no space left for {file}")
