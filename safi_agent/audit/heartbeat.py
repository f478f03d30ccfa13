"""Heartbeat: renews the leases of all open chains of a process, and waits for their audits at exit."""

import atexit
import logging
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any, Protocol

from typing_extensions import override

from safi_agent.fork_safety import ForkHandler, Stage, register
from safi_agent.store import LEASE
from safi_agent.thread_pool import ThreadPool, mark_audit_thread

log = logging.getLogger("safi_agent")
EXIT_TIMEOUT = 15.0
AT_ONCE = 8  # concurrent beats, each of which may wait for a store


class Monitored(Protocol):
    """The interface of a monitored audit branch."""

    def beat(self) -> None:
        """Renew leases, take over the turns of ended processes, and restart threads that have ended."""

    def shutdown(self, timeout: float) -> None:
        """Wait for open turns, at interpreter exit."""


class Heartbeat(ForkHandler):
    """Calls ``beat`` of each branch at intervals, on separate threads, so that a slow store delays no other branch."""

    def __init__(self, every: float = LEASE / 3) -> None:
        self.every = every  # seconds
        self._monitored: weakref.WeakSet[Monitored] = weakref.WeakSet()
        self.after_fork()
        register(self, Stage.WORK)

    @override
    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pool = ThreadPool(AT_ONCE, "safi-beat")
        self._beating: weakref.WeakKeyDictionary[Monitored, Future[Any]] = weakref.WeakKeyDictionary()

    def monitor(self, one: Monitored) -> None:
        """Call its ``beat`` from now on."""
        with self._lock:
            self._monitored.add(one)
        self.ensure()

    def monitored(self) -> list[Monitored]:
        """The branches that are monitored now."""
        with self._lock:
            return list(self._monitored)

    def ensure(self) -> None:
        """Start the thread if it is not running; a restart is logged."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            if self._thread is not None:
                log.error("The thread 'safi-heartbeat' has ended and is restarted.")
            thread = threading.Thread(target=self._run, name="safi-heartbeat", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                log.error("The thread 'safi-heartbeat' could not be started (%s); this is retried.", error)
                return
            self._thread = thread

    def _run(self) -> None:
        mark_audit_thread()
        while True:
            time.sleep(self.every)
            for one in self.monitored():
                try:
                    self._begin(one)
                except BaseException as error:
                    log.error("A heartbeat failed.", exc_info=error)

    def _begin(self, one: Monitored) -> None:
        before = self._beating.get(one)
        if before is None or before.done():
            self._beating[one] = self._pool.submit(lambda: _beat(one))


def _beat(one: Monitored) -> None:
    try:
        one.beat()
    except BaseException as error:
        log.error("A heartbeat failed.", exc_info=error)


_heartbeat = Heartbeat()


def monitor(one: Monitored) -> None:
    """Call its ``beat`` from now on, and its ``shutdown`` when the interpreter exits."""
    _heartbeat.monitor(one)


def ensure() -> None:
    """Start the heartbeat thread if it is not running."""
    _heartbeat.ensure()


def monitored() -> list[Monitored]:
    """The branches that are monitored now."""
    return _heartbeat.monitored()


@atexit.register
def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_TIMEOUT
    for one in monitored():
        try:
            one.shutdown(max(0.0, deadline - time.monotonic()))
        except Exception as error:
            log.error("Waiting for open turns at exit failed.", exc_info=error)
