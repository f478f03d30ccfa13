"""Durable memory: the outbox of turns, their ledgers, and μ. SQLAlchemy Core on SQLite, in a file (WAL) or in memory.

A turn's row goes ``pending → judged → done``; one that needs no audit starts as ``judged``. Rows of one memory key
become done in the order of their turns, whoever judged them and when: that is decided in the transaction that does it.
A commit survives the death of the process at any point; at a power cut SQLite may lose the last ones, because
``synchronous=NORMAL`` does not wait for the disk.
"""

import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    bindparam,
    create_engine,
    event,
    func,
    literal_column,
    make_url,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import StaticPool

from safi_agent.owner import is_dead, me

LEASE = 60.0
BUSY = 30.0
FRESH = 1.0  # seconds for which what another process learned may go unseen in a note
MOST_NOTES = 10_000
MOST_PAGES = 20_000  # of the write-ahead log, should no one find the time for a checkpoint
MEMORY = "sqlite://"
metadata = MetaData()
memory = Table(
    "safi_memory",
    metadata,
    Column("key", String, primary_key=True),
    Column("turns", Integer, nullable=False),
    Column("mu_turn", Integer, nullable=False, default=0),
    Column("mu", Text, nullable=False, default="{}"),
    Column("scores", Text, nullable=False, default="[]"),
    Column("note", Text, nullable=False, default=""),
)
turns = Table(
    "safi_turns",
    metadata,
    Column("id", String, primary_key=True),
    Column("key", String, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("value_set", String, nullable=False),
    Column("values_id", String, nullable=False),
    Column("log", String, nullable=False),
    Column("status", String, nullable=False),
    Column("audit", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("ledger", Text),
    Column("attempts", Integer, nullable=False, default=0),
    Column("error", Text),
    Column("record", Text),
    Column("place", Integer),  # in the order of commits, which is the order of the log
    Column("logged", Integer, nullable=False, default=0),
    Column("settled", Integer, nullable=False, default=0),  # hooks have run, nothing is left to do
    Column("owner", String, nullable=False),
    Column("lease", Float, nullable=False),
    UniqueConstraint("key", "turn"),
)
# Conditions with constants in them, not parameters: SQLite uses a partial index only where it sees its condition.
_NOT_DONE = turns.c.status != literal_column("'done'")
_NOT_LOGGED = turns.c.logged == literal_column("0")
_NOT_SETTLED = turns.c.settled == literal_column("0")
_UNFINISHED = or_(_NOT_SETTLED, _NOT_LOGGED)
_PLACED = turns.c.place.is_not(None)
Index("safi_turns_open", turns.c.key, turns.c.turn, sqlite_where=_NOT_DONE)
Index("safi_turns_unlogged", turns.c.log, turns.c.place, sqlite_where=_NOT_LOGGED)
Index("safi_turns_unfinished", turns.c.value_set, turns.c.owner, sqlite_where=_UNFINISHED)
Index("safi_turns_place", turns.c.place, sqlite_where=_PLACED)
value_sets = Table(
    "safi_value_sets", metadata, Column("id", String, primary_key=True), Column("body", Text, nullable=False)
)
logs = Table("safi_logs", metadata, Column("log", String, primary_key=True), Column("size", Integer, nullable=False))

# What is on the way to the answer is put together once.
_NOTE = select(memory.c.note).where(memory.c.key == bindparam("of"))
_FIND = select(turns.c.turn, turns.c.body).where(turns.c.id == bindparam("of"))
_BLANK = {"turns": 1, "mu_turn": 0, "mu": "{}", "scores": "[]", "note": ""}
_COUNT = (
    insert(memory)
    .on_conflict_do_update(index_elements=["key"], set_={"turns": memory.c.turns + 1})
    .returning(memory.c.turns)
)
_ADD = insert(turns)


class Memory(NamedTuple):
    """What is remembered under one key before a commit."""

    mu: dict[str, float]
    mu_turn: int
    scores: list[int]


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


_open: "weakref.WeakValueDictionary[str, Store]" = weakref.WeakValueDictionary()
_all: "weakref.WeakSet[Store]" = weakref.WeakSet()
_left_behind: list[Engine] = []  # a forked child must neither use nor close its parent's connection


def open_store(url: str | None) -> "Store":
    """The store at this URL; one for each file in a process, a new one for each None.

    Raises:
        ValueError: the URL is not one of SQLite, or its folder is not there.
    """
    if url is None:
        return Store(MEMORY)
    try:
        parsed = make_url(url)
    except Exception:
        raise ValueError(f"store: expected None or a URL like 'sqlite:///safi.db', got {url!r}.") from None
    if parsed.get_backend_name() != "sqlite":
        raise ValueError(f"store: expected a URL that begins with 'sqlite://', got {url!r}.")
    if parsed.database in (None, "", ":memory:"):
        return Store(MEMORY)
    path = Path(str(parsed.database)).absolute()
    if not path.parent.is_dir():
        raise ValueError(f"store: expected a file in a folder that is there, got {str(path)!r}.")
    full = f"sqlite:///{path}"
    store = _open.get(full)
    if store is None:
        store = _open[full] = Store(full)
    return store


class BusyError(Exception):
    """Someone else is writing just now."""


class Store:
    """One connection, used by one thread at a time; every method is one transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connect()
        _all.add(self)

    def _connect(self) -> None:
        self._lock = threading.RLock()
        arguments = {"check_same_thread": False, "timeout": BUSY}
        self._engine = create_engine(self.url, poolclass=StaticPool, connect_args=arguments, hide_parameters=True)
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        self._finalizer = weakref.finalize(self, self._engine.dispose)
        self._notes: dict[str, tuple[float, str]] = {}
        metadata.create_all(self._engine)

    def after_fork(self) -> None:
        """In the child: a connection of its own. One in memory starts empty; the parent keeps what there was."""
        _left_behind.append(self._engine)
        self._finalizer.detach()
        self._connect()

    @contextmanager
    def _transaction(self, *, reading: bool = False, patient: bool = True) -> Iterator[Connection]:
        if not self._lock.acquire(blocking=patient):
            raise BusyError
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(safi_reading=reading, safi_patient=patient)
                with connection.begin():
                    yield connection
        finally:
            self._lock.release()

    # The way to the answer

    def known_note(self, key: str) -> str | None:
        """The coaching note, if it was read or written here a moment ago; it takes no lock and no time."""
        read, note = self._notes.get(key, (-FRESH, ""))
        return note if time.monotonic() - read < FRESH else None

    def note(self, key: str) -> str:
        """The coaching note for the next turn of this key; empty where there is none."""
        if (note := self.known_note(key)) is None:
            with self._transaction(reading=True) as c:
                note = c.scalar(_NOTE, {"of": key}) or ""
            self._remember(key, note)
        return note

    def _remember(self, key: str, note: str) -> None:
        if len(self._notes) > MOST_NOTES:
            self._notes.clear()
        self._notes[key] = (time.monotonic(), note)

    def find(self, turn_id: str) -> tuple[int, dict[str, Any]] | None:
        """Number and body of the turn with this id."""
        with self._transaction(reading=True) as c:
            row = c.execute(_FIND, {"of": turn_id}).first()
        return None if row is None else (row.turn, json.loads(row.body))

    def add(
        self, body: Mapping[str, Any], values_id: str, log: str, *, audit: bool, patient: bool = True
    ) -> tuple[int, dict[str, Any] | None]:
        """Make a turn durable and give it its number; if its id was there before, what stands there comes back.

        Raises:
            BusyError: someone else is writing, and ``patient`` is False.
        """
        row = {
            "id": body["id"],
            "key": body["key"],
            "value_set": body["valueSet"],
            "values_id": values_id,
            "log": log,
            "status": "pending" if audit else "judged",
            "audit": int(audit),
            "attempts": 0,
            "body": json.dumps(body, allow_nan=False),
            "logged": 0 if log else 1,
            "settled": 0,
            "owner": me(),
            "lease": time.time() + LEASE,
        }
        try:
            with self._transaction(patient=patient) as c:
                number: int = c.execute(_COUNT, {**_BLANK, "key": body["key"]}).scalar_one()
                c.execute(_ADD, {**row, "turn": number})
        except IntegrityError:  # the id was there; nothing was counted
            number, before = cast("tuple[int, dict[str, Any]]", self.find(body["id"]))
            return number, before
        return number, None

    # The audit branch

    def keep_values(self, values_id: str, body: str) -> None:
        """Remember a value set, so that its turns can be judged by it after it was edited."""
        with self._transaction() as c:
            c.execute(insert(value_sets).values(id=values_id, body=body).on_conflict_do_nothing())

    def load(self, turn_id: str) -> tuple[dict[str, Any], str, str]:
        """Body, value set and status of a turn."""
        columns = (turns.c.body, value_sets.c.body.label("values"), turns.c.status)
        with self._transaction(reading=True) as c:
            found = select(*columns).join(value_sets, value_sets.c.id == turns.c.values_id).where(turns.c.id == turn_id)
            row = c.execute(found).one()
        return json.loads(row.body), row.values, row.status

    def tried(self, turn_id: str, attempts: int) -> None:
        """Count the attempts that failed, so that a restart does not begin anew."""
        with self._transaction() as c:
            c.execute(update(turns).where(turns.c.id == turn_id).values(attempts=attempts))

    def judged(self, turn_id: str, ledger: Sequence[Mapping[str, Any]] | None, error: str | None) -> None:
        """Keep what the Conscience found (None: it failed for good); only the first ledger of a turn counts."""
        text = None if ledger is None else json.dumps(ledger, allow_nan=False)
        with self._transaction() as c:
            open_ = and_(turns.c.id == turn_id, turns.c.status == "pending")
            c.execute(update(turns).where(open_).values(status="judged", ledger=text, error=error))

    def commit_ready(self, key: str, compute: Callable[[Row, Memory], Commit]) -> list[str]:
        """Commit the judged turns at the head of this key's lane, in order; ``compute`` must be pure."""
        done: list[str] = []
        while True:
            with self._transaction() as c:
                head = select(turns).where(turns.c.key == key, _NOT_DONE).order_by(turns.c.turn).limit(1)
                row = c.execute(head).first()
                if row is None or row.status != "judged":
                    return done
                made = _commit(c, key, row, compute)
            if made.memory is not None:
                self._remember(key, made.note)
            done.append(row.id)

    def record(self, turn_id: str) -> dict[str, Any] | None:
        """The record of a committed turn; None before that."""
        with self._transaction(reading=True) as c:
            text = c.scalar(select(turns.c.record).where(turns.c.id == turn_id))
        return None if text is None else json.loads(text)

    def settle(self, turn_ids: Sequence[str]) -> None:
        """Nothing is left to do for these turns."""
        with self._transaction() as c:
            c.execute(update(turns).where(turns.c.id.in_(turn_ids)).values(settled=1))

    def adopt(self, value_set: str) -> list[Job]:
        """Take over the unfinished turns of processes that are dead or silent for longer than their lease."""
        now = time.time()
        unfinished = and_(turns.c.value_set == value_set, _UNFINISHED)
        with self._transaction() as c:
            grouped = select(turns.c.owner, func.min(turns.c.lease)).where(unfinished).group_by(turns.c.owner)
            owners = c.execute(grouped).all()
            gone = [owner for owner, lease in owners if owner != me() and (lease < now or is_dead(owner))]
            if not gone:
                return []
            theirs = and_(unfinished, turns.c.owner.in_(gone))
            columns = (turns.c.id, turns.c.key, turns.c.log, turns.c.audit, turns.c.attempts)
            jobs = c.execute(select(*columns).where(theirs).order_by(turns.c.key, turns.c.turn)).all()
            c.execute(update(turns).where(theirs).values(owner=me(), lease=now + LEASE))
        return [Job(job.id, job.key, job.log, bool(job.audit), job.attempts) for job in jobs]

    def renew(self) -> None:
        """Say that this process is still at work on what is its own."""
        with self._transaction() as c:
            mine = and_(turns.c.owner == me(), _UNFINISHED)
            c.execute(update(turns).where(mine).values(lease=time.time() + LEASE))

    def checkpoint(self) -> None:
        """Move what was committed into the database file, which waits for the disk: not on the way to an answer."""
        if self.url != MEMORY:
            path = self.url.removeprefix("sqlite:///")
            with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    # The log

    def unlogged(self, log: str) -> tuple[int | None, list[tuple[str, str]]]:
        """The log's size when it was last written (None: never), and ids and records that are not yet in it."""
        with self._transaction(reading=True) as c:
            size = c.scalar(select(logs.c.size).where(logs.c.log == log))
            waiting = and_(turns.c.log == log, _NOT_LOGGED, _PLACED)
            rows = c.execute(select(turns.c.id, turns.c.record).where(waiting).order_by(turns.c.place)).all()
        return size, [(row.id, row.record) for row in rows]

    def logged(self, log: str, turn_ids: Sequence[str], size: int) -> None:
        """These turns are in the log, which has this size now."""
        with self._transaction() as c:
            c.execute(update(turns).where(turns.c.id.in_(turn_ids)).values(logged=1))
            kept = insert(logs).values(log=log, size=size)
            c.execute(kept.on_conflict_do_update(index_elements=["log"], set_={"size": size}))


def _commit(c: Connection, key: str, row: Any, compute: Callable[[Row, Memory], Commit]) -> Commit:
    kept = c.execute(select(memory).where(memory.c.key == key)).one()
    before = Memory(json.loads(kept.mu), kept.mu_turn, json.loads(kept.scores))
    ledger = None if row.ledger is None else json.loads(row.ledger)
    values = c.execute(select(value_sets.c.body).where(value_sets.c.id == row.values_id)).scalar_one()
    made = compute(Row(row.id, row.turn, json.loads(row.body), ledger, row.error, values), before)
    if made.memory is not None:
        mu, mu_turn, scores = made.memory
        changed = {"mu": json.dumps(mu), "mu_turn": mu_turn, "scores": json.dumps(scores), "note": made.note}
        c.execute(update(memory).where(memory.c.key == key).values(changed))
    place = select(func.coalesce(func.max(turns.c.place), 0) + 1).where(_PLACED).scalar_subquery()
    record = json.dumps(made.record, ensure_ascii=True, allow_nan=False)
    c.execute(update(turns).where(turns.c.id == row.id).values(status="done", record=record, place=place))
    return made


def _prepare(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by hand, below
    _write_ahead(connection)
    for pragma in ("synchronous=NORMAL", f"wal_autocheckpoint={MOST_PAGES}"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Where two turn to write-ahead logging at once SQLite refuses one of them without waiting."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    # A transaction that reads and then writes would be refused where another process has written, not made to wait.
    if options.get("safi_patient", True):
        connection.exec_driver_sql("BEGIN" if options.get("safi_reading") else "BEGIN IMMEDIATE")
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        raise BusyError from None
    finally:
        driver.execute(f"PRAGMA busy_timeout={int(1000 * BUSY)}")


def _after_fork() -> None:
    for store in list(_all):
        store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
