"""What the store hands out and takes in."""

from typing import Any, NamedTuple


class Memory(NamedTuple):
    """What is remembered under one key before a commit."""

    mu: dict[str, float]
    mu_turn: int
    scores: list[int]


class Kept(NamedTuple):
    """A turn as it was kept for the Conscience; ``attempts`` are those that failed."""

    body: dict[str, Any]
    values: str
    status: str
    attempts: int


class Row(NamedTuple):
    """A turn that was judged, as it is handed to whoever commits it."""

    id: str
    turn: int
    body: dict[str, Any]
    ledger: list[dict[str, Any]] | None
    error: str | None
    values: str


class Commit(NamedTuple):
    """What a commit writes: the record for the log, and the memory after it (None: as it was)."""

    record: dict[str, Any]
    memory: Memory | None
    note: str = ""


class Job(NamedTuple):
    """An unfinished turn, enough to audit it."""

    id: str
    key: str
    log: str
    audit: bool
    attempts: int = 0


class Anchor(NamedTuple):
    """A log as it was when it was last written: bytes of its last file, lines in all, last mac, id of its key."""

    size: int
    lines: int
    mac: str
    key: str


class BusyError(Exception):
    """Someone else is writing just now."""
