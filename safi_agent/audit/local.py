"""The audit branch of a SQLite store: audits the turns of one chain on a thread of this process."""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from safi_agent.audit.drain import refuse_audit_thread, unfinished_reasons
from safi_agent.audit.heartbeat import ensure, monitor
from safi_agent.audit.pipeline import AuditPipeline
from safi_agent.audit.plan import RECONNECT, Plan
from safi_agent.errors import SafiError
from safi_agent.fork_safety import ForkHandler, Stage, register
from safi_agent.lifecycle import DrainResult
from safi_agent.log import flush
from safi_agent.store import Job, Store
from safi_agent.thread_pool import is_audit_thread, mark_audit_thread

log = logging.getLogger("safi_agent")
BATCH_WINDOW = 0.01  # seconds to collect more work before a round, for larger transactions
IDLE = 5.0  # seconds without open turns after which the thread ends
JOIN_TIMEOUT = 1.0  # seconds to wait for the thread of a closed chain
POLL = 0.5  # seconds between checks of the thread in drain()
STORED = (SQLAlchemyError, OSError, SafiError)  # raised by an unreachable store or log


class LocalAuditor(ForkHandler):
    """Runs a thread while turns are open; all state that must survive is in the store.

    A store, a hook or a φ that hangs blocks this chain only.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._reset()
        store.save_values(plan.values_id, plan.values.model_dump_json())
        self.beat()
        register(self, Stage.WORK)
        monitor(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()  # unlike a Condition, Ctrl-C cannot interrupt between acquiring it and its block
        self._changed = threading.Condition(self._lock)
        self._open: dict[str, Job] = {}
        self._finished = 0
        self._inbox: SimpleQueue[object] = SimpleQueue()
        self._pipeline = AuditPipeline(self.plan, self.store, self._inbox.put, self._take_over)
        self._thread: threading.Thread | None = None
        self._retry = threading.Event()  # set to end the wait after a failure
        self._round: float | None = None  # start of the current round
        self._ending = False  # the chain was closed
        self._last_failure = ""  # why the last round failed

    @override
    def after_fork(self) -> None:
        self._reset()

    def beat(self) -> None:
        """Take over the turns of dead processes, renew leases, and restart the thread if it has ended."""
        self._take_over()  # first: an orphaned turn of this process is recognized by its old lease
        if self._open:
            self.store.leases.renew()
        self._ensure()
        flush(self.store, self.plan.log, self.plan.log_max_bytes)
        self.store.database.checkpoint()
        if (hanging := self._hanging()) is not None:
            log.error("%s", hanging)

    def _take_over(self) -> None:
        for job in self.store.leases.take_over(self.plan.values.name, self.store.leases.under_way):
            self.submit(job)

    def submit(self, job: Job) -> None:
        """Queue a durable turn; one that is already queued is processed once."""
        with self._lock:
            self._open[job.id] = job
        self._inbox.put(job)
        self._ensure()

    def drain(self, timeout: float | None = None) -> DrainResult:
        """Wait until no turn is open; the number of audits finished since the last call.

        Raises:
            RuntimeError: it was called by a hook or a model, in a thread that audits.
        """
        refuse_audit_thread()
        deadline = None if timeout is None else time.monotonic() + timeout
        self._retry.set()
        while True:
            self._ensure()
            ensure()
            with self._lock:
                rest = POLL if deadline is None else min(POLL, deadline - time.monotonic())
                if not self._open or rest <= 0:
                    break
                self._changed.wait(rest)
        with self._lock:
            finished, self._finished = self._finished, 0
        return DrainResult(finished, *self._unfinished())

    def stop(self, timeout: float) -> None:
        """Let the thread end once no turn is open; unfinished turns are continued here or by another process."""
        self._ending = True
        self._inbox.put(None)
        if (thread := self._thread) is not None and not self._open and not is_audit_thread():
            thread.join(JOIN_TIMEOUT)

    def shutdown(self, timeout: float) -> None:
        """Wait for open turns at interpreter exit."""
        self.drain(timeout)
        if self._open:
            log.error("%d turns are unfinished; the next process that opens the store finishes them.", len(self._open))

    def _unfinished(self) -> tuple[int, list[str]]:
        """The number of turns that are not done, and the reasons."""
        blocked = [self._last_failure] if self._last_failure else []
        if (hanging := self._hanging()) is not None:
            blocked.append(hanging)
        try:
            left = self.store.count_unfinished(self.plan.values.name)
            blocked += unfinished_reasons(self.store, self.plan.values.name, left)
        except (SQLAlchemyError, OSError) as error:
            return len(self._open), [*blocked, f"The store cannot be read ({type(error).__name__})."]
        return sum(left.values()), [*blocked, *(self._pipeline.blocked() if left else [])]

    def _hanging(self) -> str | None:
        begun = self._round
        if begun is None or (seconds := time.monotonic() - begun) < self.plan.timeout:
            return None
        return (
            f"The audit thread of {self.plan.values.name!r} has not moved for {seconds:.0f} s: "
            "the store, φ or σ does not return."
        )

    # The thread

    def _ensure(self) -> None:
        """Start the thread if there is work and it is not running."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            if not self._open:
                return
            if self._thread is not None:
                log.error("The audit thread has ended; a new one takes over %d open turns.", len(self._open))
                self._restart()
            thread = threading.Thread(target=self._run, name="safi-audit", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                log.error("The audit thread could not be started (%s); this is retried.", error)
                return
            self._thread = thread

    def _restart(self) -> None:
        """Restart with all open turns: their results are in the store, or are computed again."""
        self._inbox = SimpleQueue()
        self._pipeline.stop()
        self._pipeline = AuditPipeline(self.plan, self.store, self._inbox.put, self._take_over)
        for job in self._open.values():
            self._inbox.put(job)

    def _run(self) -> None:
        mark_audit_thread()
        failures = 0
        while True:
            try:
                if self._receive():
                    return
                self._run_round()
                failures, self._last_failure = 0, ""
            except BaseException as error:  # the store is unreachable, or a bug; stored data is safe
                wait = RECONNECT[min(failures, len(RECONNECT) - 1)]
                failures += 1
                self._fail(error, wait)

    def _fail(self, error: BaseException, wait: float) -> None:
        self._round = None
        self._last_failure = f"The audits are delayed by an error ({type(error).__name__}) and are retried."
        log.error(
            "%d open audits are delayed by an error; they are retried in %g s.", len(self._open), wait, exc_info=error
        )
        # A failed round can be repeated, but another error may have left it incomplete.
        if not isinstance(error, STORED):
            with self._lock:
                self._restart()
        self._retry.clear()
        self._retry.wait(wait)

    def _receive(self) -> bool:
        """Wait for work; True if the thread was idle for so long that it ends."""
        idle = 0.0 if self._ending and not self._open else IDLE
        try:
            what = self._inbox.get(timeout=min(idle, self._pipeline.seconds_until_due()))
        except Empty:
            with self._lock:
                if not self._open and self._inbox.empty():
                    self._thread = None
                    return True
        else:
            self._pipeline.receive(what)
        return False

    def _run_round(self) -> None:
        """Receive what has arrived and run one round of the pipeline."""
        time.sleep(BATCH_WINDOW)
        with suppress(Empty):
            while True:
                self._pipeline.receive(self._inbox.get_nowait())
        self._round = time.monotonic()
        settled = self._pipeline.run_round()
        self._round = None
        if settled:
            self._finish(settled)

    def _finish(self, settled: Sequence[Job]) -> None:
        with self._lock:
            for job in settled:
                self._open.pop(job.id, None)
                self._finished += job.audit
            self._changed.notify_all()
