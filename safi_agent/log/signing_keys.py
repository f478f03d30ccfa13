"""Ed25519 keys that sign checkpoints: in text form, in files, and from the environment.

A public key is the line ``NAME+ID+BASE64``, a private key ``PRIVATE+KEY+NAME+ID+BASE64``, as in Go's ``sumdb/note``. ID
is the key's id in hex, BASE64 the byte 0x01 (Ed25519) and the 32 bytes of the key or of its seed (RFC 8032).

A file of public keys has one on each line. A file of a private key has it on the first line; below it stand the public
keys of earlier private keys, whose checkpoints are continued.
"""

import base64
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safi_agent.errors import LogError
from safi_agent.log.signed_note import ID_BYTES, Signature, decode_base64, is_key_name, parse_note

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VARIABLE = "SAFI_SIGNING_KEY"
FILE = "SAFI_SIGNING_KEY_FILE"
ED25519 = b"\x01"
SEED_BYTES = 32
_PRIVATE = "PRIVATE+KEY+"
_ENCODED = re.compile(r"([^+]+)\+([0-9a-f]{8})\+(\S+)")


class PublicKey(NamedTuple):
    """A public key: its name, and the 32 bytes of RFC 8032."""

    name: str
    raw: bytes

    @property
    def key_id(self) -> bytes:
        """SHA-256(name ‖ 0x0A ‖ 0x01 ‖ key), the first four bytes."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.raw).digest()[:ID_BYTES]

    @property
    def label(self) -> str:
        """The name and the id, by which a signature names its key."""
        return f"{self.name}+{self.key_id.hex()}"

    def verifies(self, text: str, signature: bytes) -> bool:
        """Whether this is the key's signature of the text."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.label}+{_base64(ED25519 + self.raw)}"


class SigningKey:
    """A private key.

    Attributes:
        public: its public key.
        accepted: the public keys whose checkpoints it continues: its own and earlier ones.
    """

    def __init__(self, name: str, seed: bytes, earlier: Sequence[PublicKey] = ()) -> None:
        self._seed, self._private = seed, _private_key(seed)
        self.public = PublicKey(name, self._private.public_key().public_bytes_raw())
        self.accepted = (self.public, *earlier)

    def sign(self, text: str) -> Signature:
        """The signature of a text."""
        return Signature(self.public.name, self.public.key_id, self._private.sign(text.encode()))

    def encode(self) -> str:
        """The private key in text form."""
        return f"{_PRIVATE}{self.public.label}+{_base64(ED25519 + self._seed)}"


def parse_public_key(text: str) -> PublicKey:
    """A public key in text form.

    Raises:
        ValueError: the text is not one.
    """
    name, key_id, raw = _parse(text)
    key = PublicKey(name, raw)
    if key.key_id.hex() != key_id:
        raise ValueError(f"expected the id {key.key_id.hex()} of this key, got {key_id}")
    return key


def parse_signing_key(text: str) -> SigningKey:
    """A private key in text form, and earlier public keys on the lines below it.

    Raises:
        ValueError: the text is not that; the message does not contain the key.
    """
    first, *rest = _lines(text) or [""]
    if not first.startswith(_PRIVATE):
        raise ValueError(f"expected a first line that begins with {_PRIVATE}")
    try:
        name, key_id, seed = _parse(first.removeprefix(_PRIVATE))
    except ValueError:
        raise ValueError(f"expected {_PRIVATE}NAME+ID+BASE64 in the first line") from None
    key = SigningKey(name, seed, [parse_public_key(line) for line in rest])
    if key.public.key_id.hex() != key_id:
        raise ValueError(f"expected the id {key.public.key_id.hex()} of this key, got {key_id}")
    return key


def generate_key(name: str) -> SigningKey:
    """A new random key.

    Raises:
        ValueError: a key cannot have this name.
    """
    if not is_key_name(name):
        raise ValueError(
            f"name: expected a name without spaces and '+', best a URL without its scheme such as example.com/safi, "
            f"got {name!r}."
        )
    return SigningKey(name, os.urandom(SEED_BYTES))


def write_key_files(key: SigningKey, path: Path) -> Path:
    """Write a private key, readable only by its owner, and beside it its public key; returns the latter's path.

    Raises:
        FileExistsError: one of the two files exists; nothing is written.
    """
    public = Path(f"{path}.pub")
    for file in (path, public):
        if file.exists():
            raise FileExistsError(f"expected a new file, but {str(file)!r} exists.")
    for file, text, mode in ((path, key.encode(), 0o600), (public, str(key.public), 0o644)):
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as opened:
            opened.write(text + "\n")
            opened.flush()
            os.fsync(opened.fileno())
    return public


def read_public_keys(path: Path) -> list[PublicKey]:
    """The public keys in a file, one on each line.

    Raises:
        OSError: the file cannot be read.
        ValueError: it contains none, or something else.
    """
    try:
        keys = [parse_public_key(line) for line in _lines(path.read_text(encoding="utf-8"))]
    except ValueError as error:
        raise ValueError(f"{path}: expected public keys, one on each line: {error}.") from None
    if not keys:
        raise ValueError(f"{path}: expected public keys, one on each line, got none.")
    return keys


def given_signing_key() -> SigningKey | None:
    """The private key from the environment; None if there is none.

    Raises:
        ValueError: it cannot be used.
        LogError: its file can be read by others.
    """
    if (text := os.environ.get(VARIABLE)) is not None:
        return _parse_once(VARIABLE, text)
    if (file := os.environ.get(FILE)) is None:
        return None
    try:
        status = os.stat(file)
        if os.name == "posix" and status.st_mode & 0o077:
            raise LogError(
                f"{FILE}: expected {file!r} to be readable only by its owner, got mode {status.st_mode & 0o777:o}; try "
                f"'chmod 600 {file}'."
            )
        return _read_once(file, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise ValueError(f"{FILE}: expected a readable file, got {file!r} ({error}).") from None


def open_note(content: bytes, keys: Sequence[PublicKey]) -> tuple[str, PublicKey]:
    """The text of a note that one of these keys has signed, and the key. Signatures by other keys are ignored.

    Raises:
        ValueError: it is not a note, or the signature of one of the keys does not fit its text.
        UnknownKeyError: none of the keys has signed it.
    """
    note = parse_note(content)
    known = {(key.name, key.key_id): key for key in keys}
    signers = []
    for signature in note.signatures:
        if (key := known.get(signature[:2])) is None:
            continue
        if not key.verifies(note.text, signature.value):
            raise ValueError(f"the signature by {key.label} does not fit the text")
        signers.append(key)
    if not signers:
        labels = [f"{signature.name}+{signature.key_id.hex()}" for signature in note.signatures]
        raise UnknownKeyError(
            f"expected a signature by {' or '.join(key.label for key in keys)}, got one by {', '.join(labels)}"
        )
    return note.text, signers[0]


class UnknownKeyError(LogError):
    """A note is not signed by any of the expected keys."""


@lru_cache(maxsize=8)
def _read_once(file: str, mtime_ns: int, inode: int) -> SigningKey:
    """The key in a file; read again when the file has changed."""
    return _parse_named(FILE, Path(file).read_text(encoding="utf-8"))


@lru_cache(maxsize=8)
def _parse_once(source: str, text: str) -> SigningKey:
    return _parse_named(source, text)


def _parse_named(source: str, text: str) -> SigningKey:
    try:
        return parse_signing_key(text)
    except ValueError as error:
        raise ValueError(f"{source}: {error}; try 'safi keys NAME'.") from None


def _private_key(seed: bytes) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed)


def _parse(text: str) -> tuple[str, str, bytes]:
    """Name, id and bytes of a key in text form. No message quotes it: it may be a private key."""
    match = _ENCODED.fullmatch(text)
    if match is None or not is_key_name(match[1]):
        raise ValueError("expected NAME+ID+BASE64")
    try:
        data = decode_base64(match[3])
    except ValueError:
        data = b""
    if data[:1] != ED25519 or len(data) != 1 + SEED_BYTES:
        raise ValueError("expected base64 of an Ed25519 key: the byte 0x01 and 32 bytes")
    return match[1], match[2], data[1:]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
