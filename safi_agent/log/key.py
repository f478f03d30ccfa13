"""The key of a log: from the environment, or from a file beside the log that only its owner can read.

With the key a log can be forged without a trace. The key file is created if the environment has no key, so that every
log is chained; it is as safe as its folder. A key in the environment can be kept out of reach of those who can write to
the log's folder.
"""

import hmac
import os
import secrets
from pathlib import Path

from safi_agent.errors import LogError

VARIABLE = "SAFI_LOG_KEY"
FILE = "SAFI_LOG_KEY_FILE"
LEAST = 32  # characters


def key_id(key: bytes) -> str:
    """A public identifier of a key."""
    return hmac.digest(key, b"the id of a log's key", "sha256").hex()[:16]


def key_file(log: str | Path) -> Path:
    """The default path of a log's key."""
    return Path(f"{log}.key")


def given_key() -> bytes | None:
    """The key from the environment; None if there is none.

    Raises:
        ValueError: it is too short, or its file cannot be read.
    """
    name, text = VARIABLE, os.environ.get(VARIABLE)
    if text is None and (file := os.environ.get(FILE)) is not None:
        name = FILE
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ValueError(f"{FILE}: expected a readable text file, got {file!r} ({error}).") from None
    if text is None:
        return None
    if len(text) < LEAST:
        raise ValueError(f"{name}: expected at least {LEAST} characters, got {len(text)}; try 'openssl rand -hex 32'.")
    return text.encode()


def find_key(log: str | Path) -> bytes | None:
    """The key of this log, from the environment or the key file; None if there is none.

    Raises:
        ValueError: the environment names one that cannot be used.
        LogError: the file beside the log can be read by others, or does not contain a key.
    """
    if (key := given_key()) is not None:
        return key
    file = key_file(log)
    if not file.exists():
        return None
    if os.name == "posix" and file.stat().st_mode & 0o077:
        raise LogError(f"expected {file} to be readable only by its owner, got mode {file.stat().st_mode & 0o777:o}")
    key = file.read_bytes().strip()
    if len(key) < LEAST:
        raise LogError(f"expected a key of at least {LEAST} characters in {file}, got {len(key)}")
    return key


def new_key() -> bytes:
    """A new random key."""
    return secrets.token_hex(32).encode()


def write_key_file(log: str | Path, key: bytes) -> None:
    """Write the key file of a new chain. The caller holds the log's lock."""
    draft = Path(f"{key_file(log)}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key + b"\n")
        file.flush()
        os.fsync(descriptor)
    draft.rename(key_file(log))  # atomic: a partial key would make the log unusable
