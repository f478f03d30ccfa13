"""The audit branch of a PostgreSQL store: a job queue shared by several processes, and this process's worker."""

import contextlib
import logging
import math
import threading
import time
from concurrent.futures import Future
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from safi_agent.audit.drain import refuse_audit_thread, unfinished_reasons
from safi_agent.audit.event_loop_thread import EventLoopThread
from safi_agent.audit.heartbeat import ensure, monitor
from safi_agent.audit.plan import Plan
from safi_agent.audit.worker import Worker
from safi_agent.fork_safety import ForkHandler, Stage, register
from safi_agent.lifecycle import DrainResult
from safi_agent.log import flush
from safi_agent.store import Job, Store

log = logging.getLogger("safi_agent")
STOP_GRACE = 5.0  # seconds for a stopped worker to unregister
POLL = 0.05  # seconds between the first two polls of the store in drain(), then doubled
MAX_POLL = 0.4


class _Running(NamedTuple):
    worker: Worker
    thread: EventLoopThread
    ended: Future[None]


class PostgresAuditor(ForkHandler):
    """Waits for the audits of this process, in whichever worker they run; runs a worker itself if ``has_worker``."""

    def __init__(self, plan: Plan, store: Store, *, has_worker: bool) -> None:
        self.plan, self.store = plan, store
        self._has_worker = has_worker
        self._reset()
        store.save_values(plan.values_id, plan.values.model_dump_json())
        self.beat()
        _open.add(self)
        register(self, Stage.WORK)
        monitor(self)
        self._start()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._submitted = self._reported = 0
        self._running: _Running | None = None
        self._done = 0  # audits of workers that have ended
        self._stopped = False

    @override
    def after_fork(self) -> None:
        self._reset()

    def beat(self) -> None:
        """Renew leases and take over the turns of dead processes, whose jobs are still in the queue.

        Log lines that no worker could write, because it cannot access the log, are written too.
        """
        if self._stopped:
            return
        self.store.leases.renew()
        for job in self.store.leases.take_over(self.plan.values.name):
            self._count(job)
        self._start()
        flush(self.store, self.plan.log, self.plan.log_max_bytes)

    def submit(self, job: Job) -> None:
        """Count the turn; its job is already in the queue, from which any worker takes it."""
        self._count(job)
        self._start()

    def _count(self, job: Job) -> None:
        with self._lock:
            self._submitted += job.audit

    def _start(self) -> None:
        """Start a worker if none is running; a forked child starts its own after its first answer."""
        with self._lock:
            if not self._has_worker or self._stopped:
                return
            if (running := self._running) is not None:
                if running.thread.alive and not running.ended.done():
                    return
                log.error("The worker has ended; a new one is started.")
                running.thread.stop()
                self._done += running.worker.done
            worker = Worker(self.plan, self.store)
            try:
                thread = EventLoopThread("safi-worker")
            except (RuntimeError, MemoryError, OSError) as error:
                log.error("The worker could not be started (%s); this is retried.", error)
                return
            self._running = _Running(worker, thread, thread.submit(worker.run))

    def drain(self, timeout: float | None = None) -> DrainResult:
        """Wait until no turn of this process is open; the number of audits finished since the last call.

        Raises:
            RuntimeError: it was called by a hook or a model, in a thread that audits.
        """
        refuse_audit_thread()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        interval = POLL
        while (
            (open_counts := self._count_open())[0] and not self._stopped and (rest := deadline - time.monotonic()) > 0
        ):
            self._start()
            ensure()
            time.sleep(min(interval, rest))
            interval = min(2 * interval, MAX_POLL)
        with self._lock:
            finished = max(0, self._submitted - open_counts[1] - self._reported)
            self._reported += finished
        return self.drain_result(finished)

    def drain_result(self, finished: int) -> DrainResult:
        """This count as a DrainResult."""
        return DrainResult(finished, *self._unfinished())

    def _unfinished(self) -> tuple[int, list[str]]:
        """The number of turns that are not done, and the reasons."""
        name = self.plan.values.name
        try:
            counts = self.store.count_unfinished(name)
            blocked = unfinished_reasons(self.store, name, counts)
        except (SQLAlchemyError, OSError) as error:
            return self._submitted - self._reported, [f"The store cannot be read ({type(error).__name__})."]
        count = sum(counts.values())
        if count and (running := self._running) is not None and not self._stopped:
            blocked += running.worker.blocked() or [f"{count} turns are queued, or in progress at a worker."]
        elif count:
            blocked.append(f"{count} turns wait for a worker; this process has none.")
        return count, blocked

    def _count_open(self) -> tuple[int, int]:
        """The numbers of open turns and of open audits of this process."""
        try:
            return self.store.leases.count_own(self.plan.values.name)
        except SQLAlchemyError as error:  # the store is unreachable; its content is safe
            log.error("The store could not be read for finished audits.", exc_info=error)
            return 1, self._submitted - self._reported

    def shutdown(self, timeout: float) -> None:
        """Wait at interpreter exit, unless only other workers audit, and stop."""
        if self._stopped:
            return
        start = time.monotonic()
        if self._has_worker:
            self.drain(timeout)
        self.stop(max(0.0, start + timeout - time.monotonic()))

    @property
    def done(self) -> int:
        """The number of audits that the workers of this process have finished."""
        return self._done + (self._running.worker.done if self._running else 0)

    def stop(self, timeout: float) -> None:
        """Stop the worker; jobs that are not done within ``timeout`` seconds return to the queue."""
        with self._lock:
            self._stopped = True
            running = self._running
        _open.discard(self)
        if running is not None and running.thread.alive:
            with contextlib.suppress(TimeoutError, RuntimeError):  # it may end at this moment
                running.thread.loop.call_soon_threadsafe(running.worker.stop, timeout)
                running.ended.result(timeout + STOP_GRACE)
            running.thread.stop()


_open: set[PostgresAuditor] = set()  # keeps branches alive until their turns are done
