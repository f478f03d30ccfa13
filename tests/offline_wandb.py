"""Read back what an offline W&B run wrote: a LevelDB log of protobuf records."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7


def chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of every piece: 1 whole, 2 first, 3 middle, 4 last."""
    at = FILE_HEADER
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if kind == 0:
            at += room
            continue
        yield kind, data[at + HEADER : at + HEADER + length]
        at += HEADER + length


def records(data: bytes):
    from wandb.proto import wandb_internal_pb2

    whole = b""
    for kind, piece in chunks(data):
        whole = piece if kind in (1, 2) else whole + piece
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


def history(folder: Path, patience: float = 30.0) -> list[dict[str, float]]:
    """All rows logged; waits until the run's last record is on disk."""
    deadline = time.monotonic() + patience
    while True:
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        found = list(records(file.read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    rows = [record.history.item for record in found if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]
