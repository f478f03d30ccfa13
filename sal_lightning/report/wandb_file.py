"""Reads the file of a run that Weights & Biases wrote offline: a log of LevelDB's kind, of protobuf records.

The format is LevelDB's (github.com/google/leveldb, doc/log_format.md) with a header of its own and plain CRC-32; wandb
itself has no reader of it.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7
WHOLE, FIRST, LAST = 1, 2, 4  # a piece that is neither lies between a first and a last


def history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows that were logged, as far as they are on disk: the run may still be going on.

    Raises:
        ImportError: wandb is not installed.
        ValueError: the file is no such log, or is damaged.
    """
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError as error:
        raise ImportError('Expected wandb: pip install "sal-lightning[wandb]".') from error
    messages: Any = wandb_internal_pb2  # made when it is loaded, out of sight of a type checker
    for raw in records(file.read_bytes(), str(file)):
        record = messages.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def records(data: bytes, name: str = "the file") -> Iterator[bytes]:
    """Every record that is whole.

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
        if room < HEADER or kind == 0:  # the rest of a block is empty where no header fits
            at += room
            continue
        piece = data[at + HEADER : at + HEADER + length]
        if len(piece) < length:
            return
        if zlib.crc32(bytes([kind]) + piece) != check:
            raise ValueError(f"Expected {name} as it was written, got a damaged record at byte {at}.")
        yield kind, piece
        at += HEADER + length
