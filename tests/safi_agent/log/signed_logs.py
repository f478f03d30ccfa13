"""Logs that are signed, and a plain twin of their checkpoint."""

import base64
from pathlib import Path

from safi_agent.log.checkpoint import checkpoint_file, open_checkpoint
from safi_agent.log.rotation import log_files
from safi_agent.log.signing import SignedState, sign_lines
from safi_agent.log.signing_keys import SigningKey
from safi_agent.log.tree_files import read_lines
from tests.safi_agent.log.chains import plain_form
from tests.safi_agent.log.test_merkle import plain_root, sha

SIGNER = SigningKey("example.com/safi", b"s" * 32)
NEW = SignedState(None, "", 0, [])


def sign_all(log: Path, most: int | None = None) -> None:
    """Sign the first lines of a log, without any checks."""
    sign_lines(str(log), SIGNER, NEW, list(read_lines(log_files(log)))[:most])


def plain_text(lines: list[bytes], name: str = "example.com/safi") -> str:
    """What the page says that is signed: the slow twin."""
    data = [plain_form(line).rstrip(b"\n") for line in lines]
    first = sha(b"\x00" + data[0]).hex()[:16]
    return f"{name}/{first}\n{len(data)}\n{base64.b64encode(plain_root(data)).decode()}\n"


def all_lines(log: Path | str) -> list[bytes]:
    return [line for file in log_files(log) for line in file.read_bytes().splitlines(True)]


def signed_text(log: Path | str, key: SigningKey = SIGNER) -> str:
    """The text of the checkpoint of a log, whose signature is verified."""
    return open_checkpoint(checkpoint_file(log).read_bytes(), [key.public])[0].text
