"""Signed notes: a text, and lines of signatures below it. The format is C2SP's ``signed-note``, c2sp.org/signed-note.

A note is UTF-8: the text, which ends with a line break; an empty line; then one line for each signature: an em dash,
the name of the key, and base64 of the key's id (4 bytes) and the signature::

    — example.com/log Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
"""

import base64
import binascii
import re
from typing import NamedTuple

MOST_BYTES = 1_000_000
MOST_SIGNATURES = 100
ID_BYTES = 4
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIGNATURE = re.compile(r"— (\S+) (\S+)")


class Signature(NamedTuple):
    """A signature, with the name and the id of its key."""

    name: str
    key_id: bytes
    value: bytes


class Note(NamedTuple):
    """The text of a note, with its last line break, and its signatures, which are not verified yet."""

    text: str
    signatures: tuple[Signature, ...]


def is_key_name(name: str) -> bool:
    """Whether a key can have this name: not empty, without spaces, control characters and plus signs."""
    return bool(name) and "+" not in name and name.isprintable() and not re.search(r"\s", name)


def format_note(text: str, *signatures: Signature) -> str:
    """A note.

    Raises:
        ValueError: the text does not end with a line break, or contains other control characters.
    """
    if not text.endswith("\n") or _CONTROL.search(text):
        raise ValueError("text: expected lines without control characters that end with a line break.")
    encoded = [(s.name, base64.b64encode(s.key_id + s.value).decode("ascii")) for s in signatures]
    return f"{text}\n" + "".join(f"— {name} {value}\n" for name, value in encoded)


def parse_note(content: bytes) -> Note:
    """The text and the signatures of a note.

    Raises:
        ValueError: it is not a note.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"expected a note of at most {MOST_BYTES:,} bytes, got {len(content):,}")
    note = content.decode("utf-8")
    text, separator, signatures = note.rpartition("\n\n")
    if _CONTROL.search(note) or not separator or not signatures.endswith("\n"):
        raise ValueError("expected a text, an empty line and signatures, without control characters")
    lines = signatures[:-1].split("\n")
    if len(lines) > MOST_SIGNATURES:
        raise ValueError(f"expected at most {MOST_SIGNATURES} signatures, got {len(lines)}")
    return Note(f"{text}\n", tuple(map(_parse_signature, lines)))


def decode_base64(text: str) -> bytes:
    """Standard base64 with padding, as it is encoded.

    Raises:
        ValueError: the text is not that.
    """
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error:
        decoded = b""
    if not decoded or base64.b64encode(decoded).decode("ascii") != text:
        raise ValueError(f"expected base64, got {text[:80]!r}")
    return decoded


def _parse_signature(line: str) -> Signature:
    match = _SIGNATURE.fullmatch(line)
    if match is None or not is_key_name(match[1]) or len(decoded := decode_base64(match[2])) <= ID_BYTES:
        raise ValueError(f"expected a signature, got {line[:80]!r}")
    return Signature(match[1], decoded[:ID_BYTES], decoded[ID_BYTES:])
