"""Checkpoints: the signed size and root of a log's Merkle tree. The format is C2SP's ``tlog-checkpoint``.

``LOG.checkpoint`` is the newest one. It is a signed note (``safi_agent.log.signed_note``) whose text has three lines:
the origin, which identifies the log; the number of its lines; the root of their tree in base64. The leaf of a line is
the hash of its sealed form (``safi_agent.log.hash_chain``) without the line break.

The origin is the name of the first key that signed the log, a slash, and the beginning of the hash of the log's first
line, in hex: two logs that are signed with one key have different origins.
"""

import base64
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from safi_agent.log.hash_chain import sealed_form
from safi_agent.log.merkle import HASH_BYTES, leaf_hash
from safi_agent.log.signed_note import decode_base64, format_note
from safi_agent.log.signing_keys import PublicKey, SigningKey, open_note

_SIZE = re.compile(r"0|[1-9]\d{0,17}")
_ID_DIGITS = 16
_PAGE = 4096  # bytes
_LONGEST = 2**16  # bytes that are read of a checkpoint's file; one with a single signature has about 200
_BINARY = getattr(os, "O_BINARY", 0)  # Windows translates line breaks otherwise


class Checkpoint(NamedTuple):
    """The origin of a log, the number of its lines, and the root of their Merkle tree."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"


def checkpoint_file(log: str | Path) -> Path:
    """The path of a log's newest checkpoint."""
    return Path(f"{log}.checkpoint")


@lru_cache(maxsize=1)  # a line that is verified is hashed twice
def line_hash(line: bytes) -> bytes:
    """The leaf hash of a line of a log, with or without its line break: that of its sealed form."""
    return leaf_hash(sealed_form(line.removesuffix(b"\n") + b"\n")[:-1])


def make_origin(key: PublicKey, first_line: bytes) -> str:
    """The origin of a log that begins with this line and is first signed with this key."""
    return f"{key.name}/{line_hash(first_line).hex()[:_ID_DIGITS]}"


def is_origin_of(origin: str, first_line: bytes | None) -> bool:
    """Whether a log that begins with this line can have this origin; None for an unknown line."""
    return first_line is None or origin.endswith(f"/{line_hash(first_line).hex()[:_ID_DIGITS]}")


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """The signed note of a checkpoint."""
    return format_note(checkpoint.text, key.sign(checkpoint.text)).encode()


def parse_checkpoint(text: str) -> Checkpoint:
    """A checkpoint from the text of its note; extension lines are ignored.

    Raises:
        ValueError: the text is not a checkpoint.
    """
    origin, size, root, *extensions = [*text.removesuffix("\n").split("\n"), "", ""]
    if not origin or not _SIZE.fullmatch(size) or not all(extensions[:-2]):
        raise ValueError("expected a checkpoint: lines with the origin, the size and the root")
    if len(decoded := decode_base64(root)) != HASH_BYTES:
        raise ValueError(f"expected a root of {HASH_BYTES} bytes, got {len(decoded)}")
    return Checkpoint(origin, int(size), decoded)


def open_checkpoint(content: bytes, keys: Sequence[PublicKey]) -> tuple[Checkpoint, PublicKey]:
    """A checkpoint that one of these keys has signed, and the key.

    Raises:
        ValueError: it is not a checkpoint, or a signature does not fit.
        UnknownKeyError: none of the keys has signed it.
    """
    text, key = open_note(content, keys)
    return parse_checkpoint(text), key


def read_note(file: Path) -> bytes | None:
    """The content of a checkpoint's file; None if it does not exist.

    It is read until two reads are equal, since a writer may replace it in between.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | _BINARY)
    except FileNotFoundError:
        return None
    try:
        note = os.read(descriptor, _LONGEST)
        while True:
            os.lseek(descriptor, 0, os.SEEK_SET)
            if (again := os.read(descriptor, _LONGEST)) == note:
                return note
            note = again
    finally:
        os.close(descriptor)


def write_note(file: Path, content: bytes) -> None:
    """Replace a checkpoint's file. A process that is killed leaves the old one or the new one.

    A note that is not shorter than the old one overwrites it, by one system call on less than a page: to rename a new
    file takes most of the time of signing. Any other is written to a new file, which is renamed.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | _BINARY)
    except FileNotFoundError:
        pass
    else:
        try:
            if os.fstat(descriptor).st_size <= len(content) <= _PAGE:
                os.write(descriptor, content)
                return
        finally:
            os.close(descriptor)
    draft = f"{file}.new"
    with open(draft, "wb", buffering=0) as opened:
        opened.write(content)
    os.replace(draft, file)
