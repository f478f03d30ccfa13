"""The engine of a database: each process has its own."""

import weakref

from sqlalchemy import Engine
from typing_extensions import override

from safi_agent.fork import Forked, Stage, register

_left_behind: list[Engine] = []  # a forked child must neither use nor close its parent's connections


class OwnEngine(Forked):
    """Holds an engine until it is let go of itself, or the process is forked."""

    engine: Engine

    def __init__(self) -> None:
        self._hold()
        register(self, Stage.STORE)

    def _made(self) -> Engine:
        """A new engine; it connects when it is first used."""
        raise NotImplementedError

    def _hold(self) -> None:
        self.engine = self._made()
        self._finalizer = weakref.finalize(self, self.engine.dispose)

    @override
    def after_fork(self) -> None:
        """In the child: connections of its own."""
        _left_behind.append(self.engine)
        self._finalizer.detach()
        self._hold()
