"""The rows that the store returns and accepts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Memory(NamedTuple):
    """The memory of a key before a commit."""

    mu: dict[str, float]
    mu_turn: int
    scores: list[int]


class StoredTurn(NamedTuple):
    """A stored turn for the Conscience; ``body`` is JSON, ``attempts`` is the number of failed ones."""

    body: str
    values: str | None
    status: str
    attempts: int


class JudgedTurn(NamedTuple):
    """A judged turn, the input of a commit."""

    id: str
    turn: int
    body: dict[str, Any]
    ledger: list[dict[str, Any]] | None
    error: str | None
    values: str | None
    judge: str | None = None


class AuditResult(NamedTuple):
    """The result of an audit: a ledger or an error, and the name of the judge's model.

    ``body`` is the turn's, where it is at hand.
    """

    key: str
    ledger: Sequence[Mapping[str, Any]] | None
    error: str | None
    body: dict[str, Any] | None = None
    judge: str | None = None


class ReadyTurn(NamedTuple):
    """A judged turn at the head of its memory key, which can be committed."""

    id: str
    turn: int
    value_set: str
    body: str | dict[str, Any]
    ledger: str | Sequence[Mapping[str, Any]] | None
    error: str | None
    values: str | None
    judge: str | None
    erased: bool = False


class ReadyBatch(NamedTuple):
    """The turns of a memory key that can be committed, in order, and the stored memory."""

    key: str
    memory: tuple[str, int, str]  #: μ and scores in JSON, with the number of audits between them
    heads: list[ReadyTurn]


class PreparedBatch(NamedTuple):
    """The computed commit of a memory key: parameters of the UPDATE, and the memory after the last turn."""

    key: str
    rows: list[dict[str, Any]]
    records: dict[str, dict[str, Any]]  #: by turn id, in the order of turns
    value_sets: dict[str, str]  #: by turn id
    memory: dict[str, Any] | None
    erased: frozenset[str] = frozenset()  #: the ids of turns whose contents were erased before


class Commit(NamedTuple):
    """The computed commit of a turn: the record for the log, and the memory after it (None: unchanged)."""

    record: dict[str, Any]
    memory: Memory | None
    note: str = ""


class UnsettledTurn(NamedTuple):
    """A committed turn whose log line or hooks are left to do."""

    id: str
    key: str
    log: str
    record: dict[str, Any]


class AuditRow(NamedTuple):
    """A turn and, once it is committed, its record and its position in the commit order."""

    turn_id: str
    status: str
    owner: str  #: the process that works on it
    position: int  #: 0 if it is not committed
    record: dict[str, Any] | None  #: None if it is not committed


class Job(NamedTuple):
    """An unfinished turn, as the audit branch needs it."""

    id: str
    key: str
    log: str
    audit: bool
    attempts: int = 0


class Anchor(NamedTuple):
    """The end of a log at its last write: bytes of the last file, number of lines, last MAC, id of the key."""

    size: int
    lines: int
    mac: str
    key: str
