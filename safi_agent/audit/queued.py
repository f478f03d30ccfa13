"""The audit branch on a queue that several processes share; what this process answers for, and its own worker."""

import contextlib
import logging
import math
import os
import threading
import time
from concurrent.futures import Future

from sqlalchemy.exc import SQLAlchemyError

from safi_agent.audit.dispatcher import dispatcher, on_dispatcher, serve
from safi_agent.audit.plan import Plan
from safi_agent.audit.worker import Worker
from safi_agent.log import flush
from safi_agent.store import Job, Store

log = logging.getLogger("safi_agent")
LEAVE = 5.0  # seconds in which a worker that has stopped says so to the database
LOOK = 0.05  # seconds from one look at the store to the next, while it is drained


class QueuedAuditor:
    """Waits for the audits of this process, whoever carries them out; has a worker unless that is done elsewhere."""

    def __init__(self, plan: Plan, store: Store, *, works: bool) -> None:
        self.plan, self.store = plan, store
        self._works = works
        self._fresh()
        store.keep_values(plan.values_id, plan.values.model_dump_json())
        self.beat()
        _open.add(self)
        serve(self)
        self._start()

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._taken = self._told = 0
        self._running: tuple[Worker, Future[None]] | None = None
        self._stopped = False

    after_fork = _fresh

    def beat(self) -> None:
        """Renew the leases on what is under way, and answer for what dead processes left; their jobs are still there.

        Lines that no worker could write, because the log is not within its reach, are written too.
        """
        if self._stopped:
            return
        self.store.renew()
        for job in self.store.adopt(self.plan.values.name):
            self._count(job)
        flush(self.store, self.plan.log, self.plan.log_max_bytes)

    def submit(self, job: Job) -> None:
        """Its jobs came into the queue with it; whoever is free takes them."""
        self._count(job)
        self._start()

    def _count(self, job: Job) -> None:
        with self._lock:
            self._taken += job.audit

    def _start(self) -> None:
        """Have a worker; a forked child needs one of its own when it has answered for the first time."""
        with self._lock:
            if not self._works or self._running or self._stopped:
                return
            worker, ended = Worker(self.plan, self.store), Future[None]()
            self._running = worker, ended

        async def run() -> None:
            try:
                await worker.run()
            finally:
                ended.set_result(None)

        dispatcher().submit(run)

    def drain(self, timeout: float | None = None) -> int:
        """Wait until no turn of this process is open; how many audits were finished since the last call."""
        if on_dispatcher():
            raise RuntimeError(
                "drain: expected another thread than the one that audits; a hook cannot wait for itself."
            )
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (left := self._left())[0] and not self._stopped and time.monotonic() < deadline:
            time.sleep(LOOK)
        with self._lock:
            finished = max(0, self._taken - left[1] - self._told)
            self._told += finished
        return finished

    def _left(self) -> tuple[int, int]:
        """Open turns of this process, and open audits among them."""
        try:
            return self.store.mine_open(self.plan.values.name)
        except SQLAlchemyError as error:  # the store is out of reach; what is in it is safe
            log.error("It cannot be seen which audits are done.", exc_info=error)
            return 1, self._taken - self._told

    def leave(self, timeout: float) -> None:
        """The interpreter exits: wait, unless others do the work, and stop."""
        if self._stopped:
            return
        start = time.monotonic()
        if self._works:
            self.drain(timeout)
        self.stop(max(0.0, start + timeout - time.monotonic()))

    @property
    def done(self) -> int:
        """How many audits the worker of this process has carried out."""
        return self._running[0].done if self._running else 0

    def stop(self, timeout: float) -> None:
        """Begin nothing more here; what is not done within so many seconds goes back to the queue."""
        with self._lock:
            self._stopped = True
            running = self._running
        _open.discard(self)
        if running is not None:
            worker, ended = running
            dispatcher().loop.call_soon_threadsafe(worker.stop, timeout)
            with contextlib.suppress(TimeoutError):
                ended.result(timeout + LEAVE)


_open: set[QueuedAuditor] = set()  # a chain that was let go of is not done before its turns are


def _after_fork() -> None:
    for auditor in list(_open):
        auditor.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
