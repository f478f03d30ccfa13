"""The path of a log: validate that the file is a log or new, and belongs to no other log or store."""

import json
import re
from itertools import islice
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from safi_agent.log.hash_chain import read_seal
from safi_agent.log.key import given_key, key_file
from safi_agent.log.rotation import lines
from safi_agent.log.signing_keys import given_signing_key

DATABASE = b"SQLite format 3\0"
# Names of files beside a log.
BESIDE = re.compile(r".+\.(key|key\.new|lock|tree|index|checkpoint|checkpoint\.new|erasing|erasing\.new|[1-9]\d*)")
BESIDE_DATABASE = ("-wal", "-shm", "-journal")
BEGINS = b'{"timestamp": "'  # how a record begins
LONGEST_FIRST = 2**20  # bytes; a longer line is recognized by its beginning
LOOKED_AT = 100  # lines; a log with a foreign first line is still a log


def log_path(path: str | Path | None, store: str | None = None) -> str:
    """The log's full path without symbolic links, empty for none. Nothing is changed.

    Args:
        path: the path of an existing or new log.
        store: the URL of the store that writes it, whose files cannot be the log.

    Raises:
        TypeError: ``path`` is neither a path nor None.
        ValueError: its folder does not exist; it is a folder, a device, or a file with other contents, like a database,
            a key or a set of values; its name is reserved for files beside a log; or a key in the environment is
            invalid.
        LogError: the file of the signing key can be read by others.
    """
    if path is None:
        return ""
    if not isinstance(path, str | Path):
        raise TypeError(f"log: expected a path or None, got {type(path).__name__}.")
    try:
        full = Path(path).resolve()  # a file with two names would have two locks and two anchors
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"log: expected a path, got {str(path)!r} ({error}).") from None
    if not full.parent.is_dir() or full.is_dir():
        raise ValueError(f"log: expected a file in an existing folder, got {str(path)!r}.")
    if BESIDE.fullmatch(full.name):
        raise ValueError(
            f"log: expected a name that does not end in .key, .lock, .tree, .index, .checkpoint, .erasing or a number, "
            f"which are reserved for related files, got {str(path)!r}."
        )
    if full in _of_store(store) or {key_file(full), Path(f"{full}.lock")} & _of_store(store):
        raise ValueError(f"log: expected a file that does not belong to the store, got {str(path)!r}.")
    refuse_other_files(full)
    given_key()
    given_signing_key()
    return str(full)


def refuse_other_files(path: str | Path) -> None:
    """Raise unless the file is a log, empty or absent.

    Raises:
        ValueError: the file has other contents, or its name is reserved.
    """
    try:
        kind = _foreign_content(Path(path))
    except OSError:  # unreadable: the writer fails too, and lines wait in the store
        return
    if kind:
        raise ValueError(f"log: expected a log or a new file, got {kind} {str(path)!r}.")


def _foreign_content(file: Path) -> str:
    """What the file is instead of a log; empty for a log or no file."""
    if file.name.endswith(BESIDE_DATABASE) and _is_database(Path(str(file).rpartition("-")[0])):
        return "a file of the database"
    if not file.exists():
        return ""
    if not file.is_file():
        return "the device"
    if _is_database(file):
        return "the database"
    return "" if _is_log(file) else "another file"


def _is_database(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(DATABASE)) == DATABASE


def _is_log(file: Path) -> bool:
    """Whether the file is empty, its first line is a record or the beginning of one, or a line after it has a seal."""
    with file.open("rb") as opened:
        first = opened.readline(LONGEST_FIRST)
        if not first or (not first.endswith(b"\n") and first[: len(BEGINS)] == BEGINS[: len(first)]):
            return True
        opened.seek(0)
        return _is_record(first) or any(map(read_seal, islice(lines(opened), LOOKED_AT)))


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "turnId" in record


def _of_store(url: str | None) -> set[Path]:
    """The files of a store; none for one without a file."""
    try:
        parsed = make_url(url or "")
    except ArgumentError:  # opening the store reports it
        return set()
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return set()
    database = Path(parsed.database).resolve()
    return {database, *(Path(f"{database}{end}") for end in BESIDE_DATABASE)}
