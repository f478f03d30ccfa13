"""Crash recovery: find the end of a log's chain, and lines that were written but not recorded in the store."""

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from typing import BinaryIO

from safi_agent.errors import LogError
from safi_agent.log.hash_chain import Tip, beginning, genuine, read_seal
from safi_agent.log.rotation import full_files, lines
from safi_agent.store import Anchor


def find_end(descriptor: int, path: str, anchor: Anchor | None, key: bytes) -> tuple[Tip, set[str]]:
    """The end of the chain, and the turn ids in lines that the store may not have recorded.

    Only lines that continue the chain from the anchor with this key count. ``verify`` reports all others; an incomplete
    last line is truncated.

    Raises:
        LogError: nothing in the log was written with this key.
    """
    with os.fdopen(os.dup(descriptor), "rb") as file:
        if anchor is None:
            return _read_all(_from_the_first(file, descriptor, path), key)
        start = anchor.size if _ends_at(file, anchor) else 0
        return _follow(_complete_lines(file, descriptor, start), Tip(anchor.lines, anchor.mac), key)


def _ends_at(file: BinaryIO, anchor: Anchor) -> bool:
    """Whether the last recorded line still ends at the anchor's offset."""
    end = f'"{anchor.mac}"}}\n'.encode("ascii")
    file.seek(max(0, anchor.size - len(end)))
    return file.read(len(end)) == end


def _complete_lines(file: BinaryIO, descriptor: int, start: int) -> Iterator[bytes]:
    """The complete lines from here on; an incomplete last line is truncated."""
    file.seek(start)
    for line in lines(file):
        if not line.endswith(b"\n"):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - len(line))
            return
        yield line


def _from_the_first(file: BinaryIO, descriptor: int, path: str) -> Iterator[bytes]:
    for full in full_files(path):
        with full.open("rb") as before:
            yield from lines(before)
    yield from _complete_lines(file, descriptor, 0)


def _follow(rest: Iterator[bytes], tip: Tip, key: bytes) -> tuple[Tip, set[str]]:
    turn_ids: set[str] = set()
    for line in rest:
        seal = read_seal(line)
        if seal and seal.prev == tip.mac and genuine(line, seal, key):
            tip = Tip(seal.line, seal.mac)
            turn_ids |= _turn_id(line)
    return tip, turn_ids


def _read_all(every: Iterator[bytes], key: bytes) -> tuple[Tip, set[str]]:
    """The same without an anchor: after the last line with this key, or at the beginning of the chain."""
    digest, before, sealed = sha256(), 0, False
    tip: Tip | None = None
    turn_ids: set[str] = set()
    for line in every:
        seal = read_seal(line)
        sealed |= seal is not None
        if seal and genuine(line, seal, key):
            tip = Tip(seal.line, seal.mac)
        elif tip is None:
            digest.update(line)
            before += 1
        else:
            continue
        turn_ids |= _turn_id(line)
    if tip is None and sealed:
        raise LogError("no line of it was written with the present key")
    return tip or beginning(before, digest.hexdigest()), turn_ids


def _turn_id(line: bytes) -> set[str]:
    try:
        return {json.loads(line)["turnId"]}
    except (ValueError, KeyError, TypeError):
        return set()
