"""Results on disk, written atomically, with the command and the machine that produced them."""

import json
from pathlib import Path
from typing import Any

from experiments import provenance

Record = dict[str, Any]


def write_whole(file: Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name, then rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def save(record: Record, file: Path) -> None:
    """Write the record."""
    write_whole(file, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def read(file: Path) -> Record:
    """One record."""
    record: Record = json.loads(file.read_text())
    return record


def read_all(folder: Path) -> list[Record]:
    """Every record in the folder, by name."""
    return [read(file) for file in sorted(folder.glob("*.json"))]


def require(records: list[Record], folder: Path) -> list[Record]:
    """The records, of which there must be one.

    Raises:
        SystemExit: there is none, so that there is nothing to show.
    """
    if not records:
        raise SystemExit(f"Expected records of what was asked for in {folder}, got none.")
    return records


def origin(command: str, seed: int, device: str) -> Record:
    """Provenance of a record: command, commit, hardware and versions."""
    return {
        "command": command,
        "seed": seed,
        "commit": provenance.commit(),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
    }


def source(record: Record) -> str:
    """The command that reproduces a record, and its provenance."""
    hardware, versions = record["hardware"], record["versions"]
    machine = f"{hardware.get('gpu', hardware['cpu'])}, {hardware['cores']} cores"
    dirty = "-dirty" if record["commit"].endswith("-dirty") else ""
    made = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"`{record['command']}`\n\nCommit {record['commit'][:8]}{dirty}; {machine}; {made}.\n"
