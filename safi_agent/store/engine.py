"""The engine of a database: each process has its own."""

import weakref

from sqlalchemy import Engine

_left_behind: list[Engine] = []  # a forked child must neither use nor close its parent's connections


class OwnEngine:
    """Holds an engine until it is let go of itself, or the process is forked."""

    engine: Engine

    def _connect(self) -> None:
        """Make an engine and have it held."""
        raise NotImplementedError

    def _hold(self, engine: Engine) -> None:
        self.engine = engine
        self._finalizer = weakref.finalize(self, engine.dispose)

    def after_fork(self) -> None:
        """In the child: connections of its own."""
        _left_behind.append(self.engine)
        self._finalizer.detach()
        self._connect()
