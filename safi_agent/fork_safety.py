"""Fork safety: one registry of fork handlers, which take all locks in a fixed order before a fork.

``register`` an object once, with its stage. Its methods are called in the thread that forks:

* ``before_fork`` in the parent, in the order of the stages: take the locks that guard it;
* ``after_fork_in_parent``, in the opposite order: release them;
* ``after_fork`` in the child, in the opposite order: begin anew, with new locks, threads and connections.
"""

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import filelock  # noqa: F401  (its fork hooks block its users, so ours must run first and are registered last)

log = logging.getLogger("safi_agent")
LOCK_TIMEOUT = 15.0  # seconds for which a fork waits for a lock


class Stage(IntEnum):
    """The lock order: a lock that is acquired while another is held has a later stage."""

    WORK = 0  # threads, event loops, running work
    LOG = 1  # the lock of the log writer
    STORE = 2  # databases


class ForkHandler:
    """Base class of fork handlers; each method does nothing unless it is overridden."""

    def before_fork(self) -> None:
        """In the parent, before the fork: acquire the locks."""

    def after_fork_in_parent(self) -> None:
        """In the parent, after the fork: release the locks."""

    def after_fork(self) -> None:
        """In the child: create new locks, threads and connections."""


class ForkSafeLock(ForkHandler):
    """A lock that no other thread holds at a fork, and that is replaced in the child: ``with safe.lock: …``."""

    def __init__(self, stage: Stage) -> None:
        self.lock = threading.Lock()
        self._taken = False
        register(self, stage)

    def before_fork(self) -> None:
        """Acquire the lock; after ``LOCK_TIMEOUT`` seconds the fork continues without it."""
        self._taken = self.lock.acquire(timeout=LOCK_TIMEOUT)

    def after_fork_in_parent(self) -> None:
        """Release the lock."""
        if self._taken:
            self._taken = False
            self.lock.release()

    def after_fork(self) -> None:
        """Replace the lock: one that another thread of the parent held would never be released."""
        self._taken, self.lock = False, threading.Lock()


class _Registry:
    """Weak references by stage, and those whose ``before_fork`` was called for the fork under way."""

    def __init__(self) -> None:
        self.stages: dict[Stage, weakref.WeakSet[Any]] = {stage: weakref.WeakSet() for stage in Stage}
        self.one_at_a_time = threading.RLock()
        self.taken: list[ForkHandler] = []

    def before(self) -> None:
        self.one_at_a_time.acquire()
        self.taken = []
        for one in self.all():
            self.taken.append(one)
            _call(one.before_fork)

    def after_in_parent(self) -> None:
        taken, self.taken = self.taken, []
        for one in reversed(taken):
            _call(one.after_fork_in_parent)
        self.one_at_a_time.release()

    def after_in_child(self) -> None:
        self.one_at_a_time, self.taken = threading.RLock(), []
        for one in reversed(list(self.all())):
            _call(one.after_fork)

    def all(self) -> Iterator[ForkHandler]:
        for stage in Stage:
            yield from list(self.stages[stage])


_registry = _Registry()


def register(one: ForkHandler, stage: Stage) -> None:
    """Call the methods of this handler at each fork, as long as it is alive."""
    _registry.stages[stage].add(one)


def _call(method: Any) -> None:
    try:
        method()
    except Exception as error:
        log.error("The fork handler %s failed.", method.__qualname__, exc_info=error)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_registry.before,
        after_in_parent=_registry.after_in_parent,
        after_in_child=_registry.after_in_child,
    )
