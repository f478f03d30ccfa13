"""Finished audits: read one from a store and wait for it, or iterate over all in the order of their commits.

A process is notified of its own commits (``CommitListeners``). Those of other processes are found by reading the store
again at an interval.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from safi_agent.audit.drain import refuse_audit_thread
from safi_agent.errors import AuditFailedError, AuditTimeoutError, SafiError, UnknownTurnError
from safi_agent.ledger import SCORES, ContinuousFinding, Finding
from safi_agent.store import AuditRow, Store
from safi_agent.store.database_errors import raise_as
from safi_agent.store.process_id import this_process
from safi_agent.store.sqlite import Sqlite

AuditStatus = Literal["complete", "failed", "none"]
POLL = 0.05  # seconds between the first two reads of a turn that another process may commit, then doubled
MAX_POLL = 0.4
NOTIFIED_POLL = 5.0  # seconds between reads where a commit of this process is notified
ITERATION_POLL = 1.0  # seconds between reads for audits that other processes finish
PAGE = 100  # audits that an iterator reads at a time

_STORE_FAILED = "The store could not be read"
_raise_safi_error = raise_as(lambda cause: SafiError(f"{_STORE_FAILED} ({cause})."), _STORE_FAILED)


class Audit(NamedTuple):
    """The finished audit of a turn."""

    turn_id: str  #: as in the answer's ``response_metadata["safi"]``; of a repeated audit, the id of the repetition
    #: "none" for a turn that was not audited: a refusal, a turn without a draft, or one that is not in the sample
    status: AuditStatus
    ledger: tuple[Finding, ...]  #: one finding for each value that could be scored
    score: int | None  #: the Spirit's score S in 1..10
    drift: float | None  #: the drift d in [0, 1]; None if undefined
    position: int  #: the position in the commit order of the store, which increases from audit to audit
    record: Mapping[str, Any]  #: the turn's line of the log, without the keys of the chain


def read_audit(row: AuditRow) -> Audit:
    """The audit of a committed row."""
    record = row.record
    if record is None:
        raise ValueError(f"row: expected a committed turn, got {row.turn_id!r}, which is {row.status!r}.")
    return Audit(
        turn_id=row.turn_id,
        status=record["auditStatus"],
        ledger=tuple(_finding(item) for item in record["conscienceLedger"]),
        score=record["spiritScore"],
        drift=record["drift"],
        position=row.position,
        record=record,
    )


def _finding(row: Mapping[str, Any]) -> Finding:
    return (Finding if row["score"] in SCORES else ContinuousFinding).model_validate(row)


def successful(audit: Audit) -> Audit:
    """The audit, unless it has failed.

    Raises:
        AuditFailedError: all attempts failed.
    """
    if audit.status == "failed":
        raise AuditFailedError(audit.turn_id, str(audit.record["spiritReflection"]), "erased" in audit.record)
    return audit


class _Deadline:
    """The rest of a timeout.

    Raises:
        ValueError: ``timeout`` is neither None nor a number of at least 0.
    """

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and (isinstance(timeout, bool) or not timeout >= 0):
            raise ValueError(f"timeout: expected None or a number of at least 0, got {timeout!r}.")
        self.timeout = timeout
        self.extend()

    def extend(self) -> None:
        """Begin anew."""
        self._at = math.inf if self.timeout is None else time.monotonic() + self.timeout

    @property
    def left(self) -> float:
        return self._at - time.monotonic()


class _Wait:
    """The wait for the audit of one turn; once ``result`` has returned None, ``seconds`` is the time to the next read.

    ``changed`` is called at a commit that may be that of the turn.
    """

    def __init__(self, store: Store, turn_id: str, timeout: float | None, changed: Callable[[], object]) -> None:
        self._store, self._turn_id, self._changed = store, turn_id, changed
        self._deadline, self._poll = _Deadline(timeout), POLL
        self._row_id: str | None = None  # of the turn, or of the newest repetition of its audit, once it was read
        self.seconds = 0.0

    def notify(self, turn_ids: Collection[str]) -> None:
        """The listener of commits."""
        if self._row_id is None or self._row_id in turn_ids:
            self._changed()

    @_raise_safi_error
    def read(self) -> AuditRow | None:
        return self._store.find_audit(self._turn_id)

    def result(self, row: AuditRow | None) -> Audit | None:
        """The audit of the row that was read; None if it is not finished.

        Raises:
            UnknownTurnError, AuditTimeoutError: as for ``wait_for_audit``.
        """
        if row is None:
            raise UnknownTurnError(self._turn_id)
        if row.record is not None:
            return read_audit(row)
        if (left := self._deadline.left) <= 0:
            raise AuditTimeoutError(self._turn_id, self._deadline.timeout or 0.0)
        self._row_id = row.turn_id
        notified = isinstance(self._store.database, Sqlite) and row.owner == this_process()
        self.seconds = min(left, NOTIFIED_POLL if notified else self._poll)
        self._poll = min(2 * self._poll, MAX_POLL)
        return None


def wait_for_audit(store: Store, turn_id: str, timeout: float | None) -> Audit:
    """The audit of a turn, or the newest repetition of it; waits until it is committed.

    Raises:
        ValueError: ``timeout`` is neither None nor a number of at least 0.
        UnknownTurnError: the store has no such turn.
        AuditTimeoutError: it was not finished in time.
        RuntimeError: it would wait in a thread that audits.
        SafiError: the store could not be read.
    """
    changed = threading.Event()
    wait = _Wait(store, turn_id, timeout, changed.set)
    with store.commit_listeners.add(wait.notify):
        while True:
            changed.clear()
            if (audit := wait.result(wait.read())) is not None:
                return audit
            refuse_audit_thread("audit")
            changed.wait(wait.seconds)


async def await_audit(store: Store, turn_id: str, timeout: float | None) -> Audit:
    """Asynchronous version of ``wait_for_audit``; occupies a thread only while it reads the store."""
    changed = asyncio.Event()
    wait = _Wait(store, turn_id, timeout, _setter(changed))
    with store.commit_listeners.add(wait.notify):
        while True:
            changed.clear()
            if (audit := wait.result(await asyncio.to_thread(wait.read))) is not None:
                return audit
            refuse_audit_thread("aaudit")
            await _wait_for(changed, wait.seconds)


class AuditStream:
    """The finished audits of a value set, in the order of their commits; a place in this order and a deadline.

    Args:
        store: the store of the turns.
        value_set: the name of the value set.
        after: the position after which to begin; None for the position at the first read.
        timeout: seconds without an audit after which the iteration ends; None for no limit.
        is_closed: whether no more audits are to be waited for.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, store: Store, value_set: str, after: int | None, timeout: float | None, is_closed: Callable[[], bool]
    ) -> None:
        if after is not None and (isinstance(after, bool) or not isinstance(after, int) or after < 0):
            raise ValueError(f"after: expected None or a whole number of at least 0, got {after!r}.")
        self._store, self._value_set, self._after, self._is_closed = store, value_set, after, is_closed
        self._deadline = _Deadline(timeout)

    @_raise_safi_error
    def _read(self) -> list[Audit]:
        if self._after is None:
            self._after = self._store.last_position()
        audits = [read_audit(row) for row in self._store.load_finished(self._value_set, self._after, PAGE)]
        if audits:
            self._after = audits[-1].position
        return audits

    def _pause(self, closed: bool) -> float:
        """Seconds until the next read; 0 if the iteration ends."""
        return 0.0 if closed else max(0.0, min(ITERATION_POLL, self._deadline.left))

    def __iter__(self) -> Iterator[Audit]:
        changed = threading.Event()
        with self._store.commit_listeners.add(lambda _: changed.set()):
            while True:
                changed.clear()
                closed = self._is_closed()  # before the read, which then includes the last audits
                if audits := self._read():
                    yield from audits
                    self._deadline.extend()
                elif seconds := self._pause(closed):
                    refuse_audit_thread("audits")
                    changed.wait(seconds)
                else:
                    return

    async def __aiter__(self) -> AsyncIterator[Audit]:
        changed = asyncio.Event()
        set_changed = _setter(changed)
        with self._store.commit_listeners.add(lambda _: set_changed()):
            while True:
                changed.clear()
                closed = self._is_closed()
                if audits := await asyncio.to_thread(self._read):
                    for audit in audits:
                        yield audit
                    self._deadline.extend()
                elif seconds := self._pause(closed):
                    refuse_audit_thread("aaudits")
                    await _wait_for(changed, seconds)
                else:
                    return


def _setter(event: asyncio.Event) -> Callable[[], None]:
    """A function that sets an event of the running event loop from any thread."""
    loop = asyncio.get_running_loop()

    def set_event() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(event.set)

    return set_event


async def _wait_for(changed: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(changed.wait(), seconds)
