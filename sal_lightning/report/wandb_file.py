"""Reads offline files of Weights & Biases: logs in LevelDB's format with protobuf records.

The format is LevelDB's (github.com/google/leveldb, doc/log_format.md) with another header and plain CRC-32; wandb
itself has no reader for it.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7
WHOLE, FIRST, LAST = 1, 2, 4  # any other piece lies between a first and a last one


def history(file: Path) -> Iterator[dict[str, Any]]:
    """The logged rows that are on disk; the run may still be active.

    Raises:
        ImportError: wandb is not installed.
        ValueError: the file has another format, or is damaged.
    """
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError as error:
        raise ImportError('Expected wandb: pip install "sal-lightning[wandb]".') from error
    messages: Any = wandb_internal_pb2  # generated at import, unknown to type checkers
    for raw in records(file.read_bytes(), str(file)):
        record = messages.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def records(data: bytes, name: str = "the file") -> Iterator[bytes]:
    """All complete records; an incomplete one at the end is left out.

    Raises:
        ValueError: the data have another format, or are damaged.

    >>> piece = struct.pack("<IHB", zlib.crc32(bytes([WHOLE]) + b"hello"), 5, WHOLE) + b"hello"
    >>> list(records(b":W&B....."[:FILE_HEADER] + piece + piece[:9]))
    [b'hello']
    """
    if not data.startswith(b":W&B"):
        raise ValueError(f"Expected a file that begins with ':W&B', got {name} with {data[:4]!r}.")
    record = b""
    for kind, piece in _pieces(data, name):
        record = piece if kind in (WHOLE, FIRST) else record + piece
        if kind in (WHOLE, LAST):
            yield record


def _pieces(data: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    at = FILE_HEADER
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        check, length, kind = struct.unpack_from("<IHB", data, at)
        if room < HEADER or kind == 0:  # the end of a block is empty if no header fits
            at += room
            continue
        piece = data[at + HEADER : at + HEADER + length]
        if len(piece) < length:
            return
        if zlib.crc32(bytes([kind]) + piece) != check:
            raise ValueError(f"Expected {name} to be undamaged, got a checksum mismatch in the record at byte {at}.")
        yield kind, piece
        at += HEADER + length
