"""Verify the hash chain of a log: detect lines that are changed, missing or out of order."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from safi_agent.contents import erased_turns, had_contents, has_contents, is_erased
from safi_agent.errors import LogError
from safi_agent.log.anchors import anchor_key_id
from safi_agent.log.hash_chain import BEGINS, Seal, Tip, beginning, genuine, read_seal, record_of
from safi_agent.log.key import key_id
from safi_agent.log.rotation import LONGEST, full_files, lines, log_files
from safi_agent.log.tree_files import read_turn_id
from safi_agent.store import Anchor

MOST_FAULTS = 20
PAUSE = 0.1  # seconds
LONGEST_TORN = 2**20  # bytes of an incomplete last line, before which the last seal is looked for


class Fault(NamedTuple):
    """A fault in a log: the file, the line from 1 (0: the whole file), and a description."""

    file: str
    at: int
    what: str

    def __str__(self) -> str:
        """``file:line: fault``, the format that editors recognize."""
        return f"{self.file}:{self.at}: {self.what}" if self.at else f"{self.file}: {self.what}"


class Verdict(NamedTuple):
    """The first faults and their number; the lines read, the lines before the chain, the chain's end, erased lines."""

    faults: tuple[Fault, ...]
    faulty: int
    lines: int
    unsealed: int
    tip: Tip | None
    erased: int = 0


def verify(log: str | Path, key: bytes, anchor: Anchor | None = None, first: int = 1) -> Verdict:
    """Read all files of a log, one line at a time, and check the hash chain and the store's anchor.

    A fault is reported at the first line that differs from what was written. Missing lines are reported at the line in
    their place; at the end of the log, at the line after the last.

    Args:
        log: path of the log; rotated files beside it are included.
        key: the key with which it was written.
        anchor: the store's anchor, read before the log; the caller verifies its seal. Without an anchor, missing lines
            at the end and the removal of all MACs cannot be detected.
        first: number of the first line, if earlier files were moved away.

    Raises:
        FileNotFoundError: the log does not exist, and no anchor expects it.
        LogError: the anchor was made with another key.
    """
    if anchor and anchor_key_id(anchor) != key_id(key):
        raise LogError(
            f"expected the key with id {anchor_key_id(anchor)}, with which the log was written, got {key_id(key)}."
        )
    # An anchor without a MAC expects no chained line.
    expected = Expected(*anchor[1:3], "the store's anchor") if anchor and not anchor.mac.startswith(BEGINS) else None
    verifier = ChainVerifier(
        lambda line, seal: genuine(line, seal, key), expected, first, "was changed, or written without the key"
    )
    with ExitStack() as stack:
        opened = open_files(stack, Path(log))
        if not opened and anchor is None:
            raise FileNotFoundError(f"expected an existing log, got {str(log)!r}.")
        for name, file in opened:
            verifier.begin_file(name)
            for line in lines(file):
                verifier.verify_line(line if line.endswith(b"\n") else line + read_rest(file))
    verifier.finish(str(log))
    return verifier.verdict()


def is_chained(log: str | Path) -> bool:
    """Whether any line of a log has a mac.

    Raises:
        FileNotFoundError: the log does not exist.
    """
    if not log_files(log):
        raise FileNotFoundError(f"expected an existing log, got {str(log)!r}.")
    for path in log_files(log):
        with path.open("rb") as file:
            if any(read_seal(line) for line in lines(file)):
                return True
    return False


def last_seal(log: str | Path) -> Seal | None:
    """The seal of the last complete line of a log; None if there is none, or the line has none."""
    for path in reversed(log_files(log)):
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LONGEST_TORN))
            end = file.read()
        if end:
            return read_seal(end[: end.rfind(b"\n") + 1])
    return None


def open_files(stack: ExitStack, log: Path) -> list[tuple[str, BinaryIO]]:
    """All files of the log, opened at once, so that a file that is rotated meanwhile is not read twice."""
    current = stack.enter_context(log.open("rb")) if log.exists() else None
    files: list[tuple[str, BinaryIO]] = [(str(path), stack.enter_context(path.open("rb"))) for path in full_files(log)]
    if current is not None:
        files = [(name, file) for name, file in files if not os.path.sameopenfile(file.fileno(), current.fileno())]
        files.append((str(log), current))
    return files


def read_rest(file: BinaryIO) -> bytes:
    """The rest of a line that is being written."""
    time.sleep(PAUSE)
    return file.readline(LONGEST)


class Expected(NamedTuple):
    """The expected number of lines of a log, the mac of the last one if it is known, and the source of both."""

    lines: int
    mac: str | None
    source: str


class ChainVerifier:
    """Verifies each line in order, with the end of the chain so far.

    Args:
        is_genuine: whether a line is one that was written, as its seal says.
        expected: the end of the log. Default: missing lines at the end are not reported.
        first: the number of the first line.
        changed: the description of a line that is not genuine.
    """

    def __init__(
        self, is_genuine: Callable[[bytes, Seal], bool], expected: Expected | None, first: int, changed: str
    ) -> None:
        self.is_genuine, self.expected, self.first, self.changed = is_genuine, expected, first, changed
        self.faults: list[Fault] = []
        self.faulty = self.lines = self.unsealed = self.erased = 0
        self._unrecorded: dict[str, tuple[str, int]] = {}  # turns of erased lines without a record so far: their places
        self.tip: Tip | None = None  # the last genuine line
        self._faulty_since_tip = 0  # the number of faulty lines since then
        self._digest = sha256()
        self._file, self._at, self._start = "", 0, ""

    def verdict(self) -> Verdict:
        """The result, after ``finish``."""
        faults = tuple(self.faults[:MOST_FAULTS])
        return Verdict(faults, self.faulty, self.lines, self.unsealed, self.tip, self.erased)

    def begin_file(self, name: str) -> None:
        """Begin the next file."""
        self._file, self._at, self._start = name, 0, self._start or name

    def verify_line(self, line: bytes) -> None:
        """Verify the next line."""
        self._at += 1
        self.lines += 1
        seal = read_seal(line)
        if seal and self.is_genuine(line, seal):
            self._check_next(seal)
            self._note_erasure(line)
        elif seal:
            self._reject(self.changed)
        elif not line.endswith(b"\n"):
            self._reject("is torn: its end is missing")
        elif self.tip or self._faulty_since_tip:
            self._reject("has no mac")
        else:
            self.unsealed += 1
            self._digest.update(line)

    def finish(self, log: str) -> None:
        """Check for missing lines at the end, and for erased lines whose erasure no line records."""
        for turn_id, (file, at) in self._unrecorded.items():
            self.faulty += 1
            if len(self.faults) < MOST_FAULTS:
                self.faults.append(
                    Fault(file, at, f"has no contents, but no line of the log records that turn {turn_id!r} was erased")
                )
        if self.expected is None:
            return
        if self.tip is None and self.unsealed:
            self.add_fault(
                f"has no mac, but {self.expected.source} expects a chain of {self.expected.lines} lines", at_start=True
            )
            return
        present = (self.tip.lines if self.tip else 0) + self._faulty_since_tip
        if present < self.expected.lines:
            self._file, self._at = self._file or log, self._at + 1
            self.add_fault(f"{_span(present + 1, self.expected.lines)} at the end")

    def _check_next(self, seal: Seal) -> None:
        if self.tip is None:
            self._check_first(seal)
        elif seal.line <= self.tip.lines:
            self.add_fault(f"is line {seal.line} of the chain, but comes after line {self.tip.lines}")
        elif not self._faulty_since_tip and seal.line > self.tip.lines + 1:
            self.add_fault(f"is line {seal.line} of the chain; {_span(self.tip.lines + 1, seal.line - 1)} before it")
        elif not self._faulty_since_tip and seal.prev != self.tip.mac:
            self.add_fault(f"follows another line {self.tip.lines} than the one before it")
        elif (last := self.expected) and seal.line == last.lines and seal.mac != (last.mac or seal.mac):
            self.add_fault(f"differs from line {seal.line} in {last.source}")
        self.tip, self._faulty_since_tip = Tip(seal.line, seal.mac), 0

    def _note_erasure(self, line: bytes) -> None:
        """Note an erased line, whose record follows, or the record of erasures."""
        record = record_of(line)
        if has_contents(record):
            return
        self.erased += is_erased(record)
        if had_contents(record):
            self._unrecorded[read_turn_id(line)] = self._file, self._at
        for turn_id in erased_turns(record):
            self._unrecorded.pop(turn_id, None)

    def _check_first(self, seal: Seal) -> None:
        """Check the first genuine line of the chain; its faults are reported at the first line of the log."""
        begins, before = seal.prev.startswith(BEGINS), self.unsealed
        if begins and (seal.line <= before or (seal.line != before + 1 and not self._faulty_since_tip)):
            what = f"precedes the chain with {before} lines without a mac in total; there were {seal.line - 1}"
        elif begins and seal.prev != beginning(before, self._digest.hexdigest()).mac and not self._faulty_since_tip:
            what = f"to line {before}: one of these lines without a mac was changed since the chain began"
        elif not begins and before:
            what = f"to line {before}: these have no mac and are not covered by the chain"
        elif not begins and seal.line != self.first and not self._faulty_since_tip:
            what = f"is line {seal.line} of the chain; expected line {self.first} first"
        else:
            return
        self.add_fault(what, at_start=True)

    def _reject(self, what: str) -> None:
        self._faulty_since_tip += 1
        self.add_fault(what)

    def add_fault(self, what: str, *, at_start: bool = False) -> None:
        """Report a fault at the present line, or at the first line of the log."""
        self.faulty += 1
        if at_start:
            self.faults.insert(0, Fault(self._start, 1, what))
        elif len(self.faults) < MOST_FAULTS:
            self.faults.append(Fault(self._file, self._at, what))


def _span(first: int, last: int) -> str:
    """The description of a range of missing lines."""
    return f"line {first} is missing" if first == last else f"lines {first} to {last} are missing"
