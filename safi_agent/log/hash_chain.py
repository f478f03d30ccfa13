"""The hash chain of a log: each line has its number, the MAC of the line before it, and its own MAC.

A line ends in ``, "line": n, "prev": "…", "mac": "…"}``. ``mac`` is the HMAC-SHA256 (RFC 2104) of all bytes of the line
before ``, "mac"``, in hex; ``prev`` is the MAC of the line before it, which may be in another file. The ``prev`` of the
first line is ``sha256:`` and the digest of the previous contents of the log: empty, or the lines of a log that was not
chained yet. Codes are computed over the bytes of a line, never over a parsed object.
"""

import hmac
import re
from hashlib import sha256
from typing import NamedTuple

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
    body = f'{record[:-1]}, "line": {tip.lines + 1}, "prev": "{tip.mac}"'.encode("ascii")
    mac = hmac.digest(key, body, "sha256").hex()
    return body + f', "mac": "{mac}"}}\n'.encode("ascii"), Tip(tip.lines + 1, mac)


def sealed_line(record: str, seal: Seal) -> bytes:
    """The line of a record with this seal, genuine or not."""
    return f'{record[:-1]}, "line": {seal.line}, "prev": "{seal.prev}", "mac": "{seal.mac}"}}\n'.encode()


def read_seal(line: bytes) -> Seal | None:
    """The seal of a line; None if it has none, or one that is not written exactly as ``seal`` does."""
    match = _SEAL.search(line, max(0, len(line) - _WIDEST))
    if match is None:
        return None
    number, prev, mac = match.groups()
    return Seal(int(number), prev.decode("ascii"), mac.decode("ascii"))


def genuine(line: bytes, seal: Seal, key: bytes) -> bool:
    """Whether a line was sealed with this key, compared in constant time."""
    return hmac.compare_digest(hmac.digest(key, line[:-_MAC], "sha256"), bytes.fromhex(seal.mac))
