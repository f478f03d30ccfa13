"""Notifies waiters in this process of the turns that it has committed."""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

Listener = Callable[[Collection[str]], object]


class CommitListeners:
    """Functions that are called after each commit of this process, with the ids of the committed turns.

    They are called on the thread that commits, so they must return at once and must not raise.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[object, Listener] = {}

    @contextmanager
    def add(self, listener: Listener) -> Iterator[None]:
        """Call this function after each commit within the context."""
        token = object()
        with self._lock:
            self._listeners[token] = listener
        try:
            yield
        finally:
            with self._lock:
                del self._listeners[token]

    def notify(self, turn_ids: Collection[str]) -> None:
        """Call all listeners."""
        with self._lock:
            listeners = list(self._listeners.values())
        for listener in listeners:
            listener(turn_ids)
