"""Bearer keys: which client may use the service, and under which memory key its turns are stored.

A file of keys has one line for each key: the SHA-256 of the key in hex, a space, and the memory key. Lines that are
empty or begin with ``#`` are ignored. Keys are random (256 bits), so a hash without a salt cannot be reversed.
"""

import hmac
import os
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from safi_agent.unicode_text import LONGEST_NAME, is_name

VARIABLE = "SAFI_SERVE_KEYS"
FILE = "SAFI_SERVE_KEYS_FILE"
PREFIX = "safi-"
RANDOM_BYTES = 32


class BearerKey(NamedTuple):
    """The SHA-256 of a key (32 bytes), and the memory key of its turns."""

    digest: bytes
    memory_key: str


def find_memory_key(keys: Sequence[BearerKey], authorization: str) -> str | None:
    """The memory key for the value of an ``Authorization`` header; None if it has no known bearer key.

    All keys are compared, each in constant time.
    """
    scheme, _, key = authorization.partition(" ")
    digest = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
    found = None
    for known in keys:
        if hmac.compare_digest(known.digest, digest):
            found = known.memory_key
    return found if scheme.lower() == "bearer" else None


def load_bearer_keys(file: Path | None = None) -> tuple[BearerKey, ...]:
    """The keys in a file, or in the environment variable SAFI_SERVE_KEYS; empty if neither is given.

    Raises:
        ValueError: both are given, the file cannot be read or is accessible to others, or a line is not a key.
    """
    text = os.environ.get(VARIABLE)
    if file is None:
        return () if text is None else _parse(text, VARIABLE)
    if text is not None:
        raise ValueError(f"keys: expected either a file or {VARIABLE}, got both.")
    return _parse(_read(file), str(file))


def add_bearer_key(file: Path, memory_key: str) -> str:
    """Generate a key, append its hash to a file, and return it: it is stored nowhere else.

    A new file is accessible to its owner only.

    Raises:
        ValueError: the name cannot be a memory key, or the file is not one of keys or is accessible to others.
    """
    _check_name(memory_key, "memory_key")
    separator = ""
    if file.exists():
        text = _read(file)
        _parse(text, str(file))
        separator = "" if text.endswith("\n") else "\n"
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as opened:
        opened.write(f"{separator}{sha256(key.encode()).hexdigest()} {memory_key}\n")
        opened.flush()
        os.fsync(descriptor)
    return key


def _read(file: Path) -> str:
    try:
        if os.name == "posix" and (mode := file.stat().st_mode & 0o777) & 0o077:
            raise ValueError(f"keys: expected {file} to be accessible only to its owner, got mode {mode:o}.")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"keys: expected a readable text file, got {str(file)!r} ({type(error).__name__}).") from None


def _parse(text: str, origin: str) -> tuple[BearerKey, ...]:
    keys: dict[bytes, BearerKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        hexadecimal, _, name = line.strip().partition(" ")
        try:
            digest = bytes.fromhex(hexadecimal)
        except ValueError:
            digest = b""
        if len(digest) != sha256().digest_size:
            raise ValueError(f"{origin}, line {number}: expected the SHA-256 of a key in hex, a space, a memory key.")
        _check_name(name.strip(), f"{origin}, line {number}")
        if digest in keys:
            raise ValueError(f"{origin}, line {number}: expected each key once, got one again.")
        keys[digest] = BearerKey(digest, name.strip())
    if not keys:
        raise ValueError(f"{origin}: expected at least one key, got none.")
    return tuple(keys.values())


def _check_name(name: str, where: str) -> None:
    if not is_name(name):
        raise ValueError(f"{where}: expected a memory key of 1 to {LONGEST_NAME} printable characters, got {name!r}.")
