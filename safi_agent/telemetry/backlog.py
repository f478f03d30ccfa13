"""Metrics of the backlog of open audits: its depth, and the age of its oldest turn."""

import logging
import threading
import weakref
from collections.abc import Iterable, Iterator

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from typing_extensions import override

from safi_agent.fork_safety import ForkHandler, Stage, register
from safi_agent.store import Store
from safi_agent.store.backlog import Backlog, read_backlog
from safi_agent.store.timeout_budget import shared_timeout_budget
from safi_agent.telemetry import SCOPE
from safi_agent.telemetry.attributes import VALUE_SET

log = logging.getLogger("safi_agent")
STORE_TIMEOUT = 2.0  # seconds that a measurement may wait for its store


class BacklogMonitor(ForkHandler):
    """Measures the backlogs of the open chains of this process, whenever metrics are collected."""

    def __init__(self) -> None:
        self._stores: weakref.WeakKeyDictionary[Store, dict[str, int]] = weakref.WeakKeyDictionary()
        self.after_fork()
        register(self, Stage.WORK)

    @override
    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def add(self, store: Store, value_set: str) -> None:
        """A chain of this value set was opened."""
        with self._lock:
            chains = self._stores.setdefault(store, {})
            chains[value_set] = chains.get(value_set, 0) + 1

    def remove(self, store: Store, value_set: str) -> None:
        """A chain of this value set was closed."""
        with self._lock:
            chains = self._stores[store]
            chains[value_set] -= 1
            if not chains[value_set]:
                del chains[value_set]

    def observe(self, meter: Meter) -> None:
        """Create the instruments."""
        depth, age = self._depths, self._ages
        meter.create_observable_gauge("safi.backlog.depth", [depth], "{audit}", "Open audits in the store.")
        meter.create_observable_gauge("safi.backlog.age", [age], "s", "Time since the oldest turn with an open audit.")

    def _depths(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(backlog.depth, {VALUE_SET: name}) for name, backlog in self._backlogs()]

    def _ages(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(backlog.oldest or 0.0, {VALUE_SET: name}) for name, backlog in self._backlogs()]

    def _backlogs(self) -> Iterator[tuple[str, Backlog]]:
        """The backlogs by value set; that of a store that fails is left out, and the logger says so."""
        with self._lock:
            pairs = [(store, value_set) for store, chains in self._stores.items() for value_set in chains]
        for store, value_set in pairs:
            try:
                with shared_timeout_budget(STORE_TIMEOUT):
                    backlog = read_backlog(store.database, value_set)
            except Exception as error:
                log.error("The backlog of %r could not be measured (%s).", value_set, type(error).__name__)
            else:
                yield value_set, backlog


monitor = BacklogMonitor()
monitor.observe(metrics.get_meter(SCOPE))
