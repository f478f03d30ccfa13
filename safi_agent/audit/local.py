"""Carries approved turns of one chain from the outbox to the log: Conscience, Spirit, memory, log, hooks."""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from safi_agent.audit.drain import why_left
from safi_agent.audit.heartbeat import ensure, serve
from safi_agent.audit.pipeline import Carriage
from safi_agent.audit.plan import RECONNECT, Plan
from safi_agent.errors import SafiError
from safi_agent.fork_safety import Forked, Stage, register
from safi_agent.lifecycle import Drained
from safi_agent.log import flush
from safi_agent.store import Job, Store
from safi_agent.thread_pool import is_own, mark_own

log = logging.getLogger("safi_agent")
GRACE = 0.01  # seconds in which more may come before a round begins, so that much is done in one transaction
IDLE = 5.0  # seconds without open turns after which the thread ends
ENDS = 1.0  # seconds for the thread of a closed chain to end
LOOK = 0.5  # seconds from one look at the thread to the next, while it is waited for
STORED = (SQLAlchemyError, OSError, SafiError)  # what a store or a log out of reach raises
SELF = "drain: expected another thread than those that audit; a hook cannot wait for itself."


class Auditor(Forked):
    """Has a thread of its own while turns are open; everything that matters is in the store.

    A store, a hook or a φ that hangs holds up this chain and no other.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._fresh()
        store.save_values(plan.values_id, plan.values.model_dump_json())
        self.beat()
        register(self, Stage.WORK)
        serve(self)

    def _fresh(self) -> None:
        self._lock = threading.RLock()  # Ctrl-C cannot come between it and its block, as it can with a Condition
        self._changed = threading.Condition(self._lock)
        self._open: dict[str, Job] = {}
        self._finished = 0
        self._inbox: SimpleQueue[object] = SimpleQueue()
        self._carriage = Carriage(self.plan, self.store, self._inbox.put, self._adopt)
        self._thread: threading.Thread | None = None
        self._again = threading.Event()  # set to end the wait after a failure
        self._round: float | None = None  # when the round that is under way began
        self._ending = False  # the chain was closed
        self._broken = ""  # why the last round came to nothing

    @override
    def after_fork(self) -> None:
        self._fresh()

    def beat(self) -> None:
        """Take over what dead processes left, renew the leases on what is open, and see that the thread runs."""
        self._adopt()  # first: a turn of this process that nobody audits is known by its old lease
        if self._open:
            self.store.leases.renew()
        self._ensure()
        flush(self.store, self.plan.log, self.plan.log_max_bytes)
        self.store.database.checkpoint()
        if (hanging := self._hanging()) is not None:
            log.error("%s", hanging)

    def _adopt(self) -> None:
        for job in self.store.leases.take_over(self.plan.values.name, self.store.leases.under_way):
            self.submit(job)

    def submit(self, job: Job) -> None:
        """Carry a durable turn to its end, some time soon; one that is under way already is carried once."""
        with self._lock:
            self._open[job.id] = job
        self._inbox.put(job)
        self._ensure()

    def drain(self, timeout: float | None = None) -> Drained:
        """Wait until nothing is open; how many audits were finished since the last call.

        Raises:
            RuntimeError: it was called by a hook or a model, in a thread that audits.
        """
        if is_own():
            raise RuntimeError(SELF)
        deadline = None if timeout is None else time.monotonic() + timeout
        self._again.set()
        while True:
            self._ensure()
            ensure()
            with self._lock:
                rest = LOOK if deadline is None else min(LOOK, deadline - time.monotonic())
                if not self._open or rest <= 0:
                    break
                self._changed.wait(rest)
        with self._lock:
            finished, self._finished = self._finished, 0
        return Drained(finished, *self._left())

    def stop(self, timeout: float) -> None:
        """Let the thread end once nothing is open; what is not finished goes on, in this process or another."""
        self._ending = True
        self._inbox.put(None)
        if (thread := self._thread) is not None and not self._open and not is_own():
            thread.join(ENDS)

    def leave(self, timeout: float) -> None:
        """The interpreter exits: wait."""
        self.drain(timeout)
        if self._open:
            log.error("%d turns are left in the store; whatever opens it next finishes them.", len(self._open))

    def _left(self) -> tuple[int, list[str]]:
        """How many turns are not done, and why."""
        blocked = [self._broken] if self._broken else []
        if (hanging := self._hanging()) is not None:
            blocked.append(hanging)
        try:
            left = self.store.count_unfinished(self.plan.values.name)
            blocked += why_left(self.store, self.plan.values.name, left)
        except (SQLAlchemyError, OSError) as error:
            return len(self._open), [*blocked, f"The store cannot be read ({type(error).__name__})."]
        return sum(left.values()), [*blocked, *(self._carriage.blocked() if left else [])]

    def _hanging(self) -> str | None:
        begun = self._round
        if begun is None or (seconds := time.monotonic() - begun) < self.plan.timeout:
            return None
        return (
            f"The thread that audits under {self.plan.values.name!r} has not moved for {seconds:.0f} s: "
            "the store, φ or σ does not come back."
        )

    # The thread

    def _ensure(self) -> None:
        """Have the thread run if there is anything to do."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            if not self._open:
                return
            if self._thread is not None:
                log.error("The thread that audits had ended; another one takes up %d open turns.", len(self._open))
                self._take_up()
            thread = threading.Thread(target=self._run, name="safi-audit", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                log.error("The thread that audits could not be started (%s); it is tried again.", error)
                return
            self._thread = thread

    def _take_up(self) -> None:
        """Begin anew with all open turns: what was under way is in the store, or is done again."""
        self._inbox = SimpleQueue()
        self._carriage.stop()
        self._carriage = Carriage(self.plan, self.store, self._inbox.put, self._adopt)
        for job in self._open.values():
            self._inbox.put(job)

    def _run(self) -> None:
        mark_own()
        failures = 0
        while True:
            try:
                if self._wait():
                    return
                self._go_on()
                failures, self._broken = 0, ""
            except BaseException as error:  # the store is out of reach, or a fault of ours; what is stored is safe
                wait = RECONNECT[min(failures, len(RECONNECT) - 1)]
                failures += 1
                self._fail(error, wait)

    def _fail(self, error: BaseException, wait: float) -> None:
        self._round = None
        self._broken = f"The audits wait ({type(error).__name__}), and are tried again."
        log.error("%d audits wait, and are tried again in %g s.", len(self._open), wait, exc_info=error)
        if not isinstance(error, STORED):  # a round can be repeated; what else failed may have left half of one
            with self._lock:
                self._take_up()
        self._again.clear()
        self._again.wait(wait)

    def _wait(self) -> bool:
        """Wait for something to do; whether there was nothing for so long that the thread ends."""
        idle = 0.0 if self._ending and not self._open else IDLE
        try:
            what = self._inbox.get(timeout=min(idle, self._carriage.wait()))
        except Empty:
            with self._lock:
                if not self._open and self._inbox.empty():
                    self._thread = None
                    return True
        else:
            self._carriage.take(what)
        return False

    def _go_on(self) -> None:
        """One round: take what has come, and do with it what can be done."""
        time.sleep(GRACE)
        with suppress(Empty):
            while True:
                self._carriage.take(self._inbox.get_nowait())
        self._round = time.monotonic()
        settled = self._carriage.round()
        self._round = None
        if settled:
            self._close(settled)

    def _close(self, settled: Sequence[Job]) -> None:
        with self._lock:
            for job in settled:
                self._open.pop(job.id, None)
                self._finished += job.audit
            self._changed.notify_all()
