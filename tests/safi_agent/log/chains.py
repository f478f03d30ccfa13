"""Logs to be tampered with, and a plain twin of what chains them."""

import hashlib
import hmac
import json
import re
from pathlib import Path

from safi_agent.log.hash_chain import Tip, beginning, seal
from safi_agent.log.key import key_id
from safi_agent.store import Anchor

KEY = b"k" * 32


def record(i: int, text: str = "") -> str:
    text = text or f"Question {i}?"
    salt = hashlib.sha512(f"{i} {text}".encode()).hexdigest()[:66]
    return json.dumps({"turnId": f"t{i}", "turn": i, "userPrompt": text, "flags": [], "salt": salt})


def chain(count: int, key: bytes = KEY, tip: Tip | None = None, text: str = "") -> list[bytes]:
    """So many lines, one after the other."""
    made, tip = [], tip or beginning()
    for _ in range(count):
        line, tip = seal(record(tip.lines + 1, text), tip, key)
        made.append(line)
    return made


def write(path: Path, *files: list[bytes]) -> Path:
    """The lines as a log; all files but the last are full."""
    for i, lines in enumerate(files[:-1], 1):
        Path(f"{path}.{i}").write_bytes(b"".join(lines))
    path.write_bytes(b"".join(files[-1]))
    return path


def anchor(lines: list[bytes], key: bytes = KEY, before: int = 0) -> Anchor:
    """What the store remembers of these lines."""
    size = sum(map(len, lines))
    return Anchor(size, before + len(lines), json.loads(lines[-1])["mac"], key_id(key))


def plain_form(line: bytes) -> bytes:
    """What the page on the log says that is sealed of one of these lines: the slow twin."""
    before, sealed = line[: line.rindex(b', "line": ')], line[line.rindex(b', "line": ') :]
    if b', "salt": "' not in before:
        return line
    record, salt = before.rsplit(b', "salt": ', 1)
    emptied = record
    for name in (b"userPrompt", b"intellectDraft", b"reason"):
        emptied = re.sub(rb'"%b": "[^"\\]*"' % name, b'"%b": ""' % name, emptied)
    assert re.fullmatch(rb'"[0-9a-f]{66}"', salt)
    return emptied + f', "erased": "{hashlib.sha256(before + b"}").hexdigest()}"'.encode() + sealed


def plain_faults(lines: list[bytes], key: bytes, before: bytes = b"") -> list[int]:
    """The lines, from 1, whose number, ``prev`` or ``mac`` is not what the page on the log says: the slow twin."""
    faults = []
    prev, number = "sha256:" + hashlib.sha256(before).hexdigest(), before.count(b"\n")
    for at, line in enumerate(lines, 1):
        number += 1
        told = json.loads(line)
        body = plain_form(line)[: plain_form(line).rindex(b', "mac": ')]
        mac = hmac.new(key, body, hashlib.sha256).hexdigest()
        if (told["line"], told["prev"], told["mac"]) != (number, prev, mac):
            faults.append(at)
        prev = told["mac"]
    return faults
