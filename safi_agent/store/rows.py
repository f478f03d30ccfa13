"""What the store hands out and takes in."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Memory(NamedTuple):
    """What is remembered under one key before a commit."""

    mu: dict[str, float]
    mu_turn: int
    scores: list[int]


class StoredTurn(NamedTuple):
    """A turn as it was kept for the Conscience; ``body`` is JSON, ``attempts`` are those that failed."""

    body: str
    values: str | None
    status: str
    attempts: int


class JudgedTurn(NamedTuple):
    """A turn that was judged, as it is handed to whoever commits it."""

    id: str
    turn: int
    body: dict[str, Any]
    ledger: list[dict[str, Any]] | None
    error: str | None
    values: str | None
    judge: str | None = None


class AuditResult(NamedTuple):
    """What an audit came to: a ledger, or why there is none, and the name of the model that judged.

    ``body`` is the turn's, where it is at hand.
    """

    key: str
    ledger: Sequence[Mapping[str, Any]] | None
    error: str | None
    body: dict[str, Any] | None = None
    judge: str | None = None


class ReadyTurn(NamedTuple):
    """A turn at the head of its lane that was judged, and can be committed."""

    id: str
    turn: int
    value_set: str
    body: str | dict[str, Any]
    ledger: str | Sequence[Mapping[str, Any]] | None
    error: str | None
    values: str | None
    judge: str | None


class ReadyBatch(NamedTuple):
    """A lane, and what can be committed of it: its memory, as it is stored, and turns in their order."""

    key: str
    memory: tuple[str, int, str]  #: μ and scores in JSON, with the number of audits between them
    heads: list[ReadyTurn]


class PreparedBatch(NamedTuple):
    """What is to be written of a lane: its turns as parameters of a statement, and the memory after the last."""

    key: str
    rows: list[dict[str, Any]]
    records: dict[str, dict[str, Any]]  #: by turn id, in the order of turns
    value_sets: dict[str, str]  #: by turn id
    memory: dict[str, Any] | None


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
