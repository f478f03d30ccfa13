"""The hash chain of a log: each line has its number, the MAC of the line before it, and its own MAC.

A line ends in ``, "line": n, "prev": "…", "mac": "…"}``. ``mac`` is the HMAC-SHA256 (RFC 2104) of all bytes of the
sealed form of the line before ``, "mac"``, in hex; ``prev`` is the MAC of the line before it, which may be in another
file. The ``prev`` of the first line is ``sha256:`` and the digest of the previous contents of the log: empty, or the
lines of a log that was not chained yet.

The sealed form of a line is the line after the erasure of its contents (``safi_agent.contents``), which contains a
SHA-256 of all bytes of the record before. In the log, spaces before ``, "line"`` take the place of what was erased.
"""

import hmac
import re
from hashlib import sha256
from typing import NamedTuple

from safi_agent.contents import erase_record, has_contents, is_erased

BEGINS = "sha256:"
_SEAL = re.compile(rb', "line": ([1-9]\d{0,17}), "prev": "((?:sha256:)?[0-9a-f]{64})", "mac": "([0-9a-f]{64})"\}\n\Z')
_MAC = len(', "mac": "') + 64 + len('"}\n')
_WIDEST = len(', "line": , "prev": ""') + 18 + len(BEGINS) + 64 + _MAC


class Seal(NamedTuple):
    """The end of a line: its number over all files, from 1; the previous line's MAC; its own MAC."""

    line: int
    prev: str
    mac: str


class Tip(NamedTuple):
    """The end of a chain: the number of lines, and the MAC of the last."""

    lines: int
    mac: str


def beginning(lines: int = 0, digest: str = sha256().hexdigest()) -> Tip:
    """The beginning of a chain after ``lines`` lines without a MAC, whose SHA-256 is ``digest``."""
    return Tip(lines, BEGINS + digest)


def seal(record: str, tip: Tip, key: bytes) -> tuple[bytes, Tip]:
    """The line after ``tip``, and the new end of the chain.

    Args:
        record: a JSON object that is not empty, in ASCII and without a line break.
        tip: the end of the chain.
        key: the log's key.
    """
    sealed = _sealed_record(record)
    place = f', "line": {tip.lines + 1}, "prev": "{tip.mac}"'
    mac = hmac.digest(key, f"{sealed[:-1]}{place}".encode("ascii"), "sha256").hex()
    return f'{record[:-1]}{place}, "mac": "{mac}"}}\n'.encode("ascii"), Tip(tip.lines + 1, mac)


def is_line_of(record: str, seal: Seal, line: bytes) -> bool:
    """Whether the line contains this record and this seal, genuine or not; either of the two records may be erased."""
    expected = f'{record[:-1]}, "line": {seal.line}, "prev": "{seal.prev}", "mac": "{seal.mac}"}}\n'.encode()
    return expected == line or sealed_form(expected) == sealed_form(line)


def sealed_form(line: bytes) -> bytes:
    """What the MAC and the leaf hash of a line cover; the line itself if it has no contents that can be erased."""
    if (match := _find_seal(line)) is None:
        return line
    record, place = line[: match.start()], line[match.start() :]
    try:
        return _sealed_record(record.decode("ascii") + "}")[:-1].encode("ascii") + place
    except UnicodeDecodeError:  # it was not written by ``seal``
        return line


def _sealed_record(record: str) -> str:
    if is_erased(record):
        return record[:-1].rstrip(" ") + "}"
    return erase_record(record) if has_contents(record) else record


def erase_line(line: bytes) -> bytes:
    """The line after the erasure of its contents, with spaces so that it has the same length and the same seal."""
    sealed = sealed_form(line)
    if sealed == line or (match := _find_seal(sealed)) is None:
        return line
    return sealed[: match.start()] + b" " * (len(line) - len(sealed)) + sealed[match.start() :]


def record_of(line: bytes) -> str:
    """The record of a line in JSON, without its seal; the line itself if it has no seal."""
    match = _find_seal(line)
    return line.decode("utf-8", "replace") if match is None else line[: match.start()].decode("utf-8", "replace") + "}"


def _find_seal(line: bytes) -> "re.Match[bytes] | None":
    return _SEAL.search(line, max(0, len(line) - _WIDEST))


def read_seal(line: bytes) -> Seal | None:
    """The seal of a line; None if it has none, or one that is not written exactly as ``seal`` does."""
    if (match := _find_seal(line)) is None:
        return None
    number, prev, mac = match.groups()
    return Seal(int(number), prev.decode("ascii"), mac.decode("ascii"))


def genuine(line: bytes, seal: Seal, key: bytes) -> bool:
    """Whether a line was sealed with this key, compared in constant time."""
    return hmac.compare_digest(hmac.digest(key, sealed_form(line)[:-_MAC], "sha256"), bytes.fromhex(seal.mac))
