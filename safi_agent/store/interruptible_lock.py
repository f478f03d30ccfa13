"""A lock for transactions that an interrupt (Ctrl-C) cannot leave locked.

Ctrl-C can raise anywhere in the main thread, also between the end of a ``with`` block and the first line of its
``__exit__``, which then does not run. A block therefore stores its thread and the frame of its ``with``: when that
frame is no longer running, the block has ended, even if its ``__exit__`` was skipped.
"""

import sys
import threading
from types import FrameType

from safi_agent.store.timeout_budget import Wait

CHECK_INTERVAL = 0.25  # seconds between checks whether the holder's block has ended


class TransactionBlock:
    """The ``with`` block of a transaction; ``begin`` is called from its ``__enter__``."""

    _frame: FrameType | None = None
    _thread = 0

    def begin(self, frame: FrameType | None) -> None:
        """Store the frame of the ``with`` statement."""
        self._thread, self._frame = threading.get_ident(), frame

    def end(self) -> None:
        """Clear the frame, so that it keeps nothing alive."""
        self._frame = None

    def is_here(self) -> bool:
        """Whether the block runs on the current thread."""
        return self._thread == threading.get_ident()

    def is_over(self) -> bool:
        """Whether its thread has left the block."""
        running = sys._current_frames().get(self._thread)
        while running is not None and running is not self._frame:
            running = running.f_back
        return running is None


class InterruptSafeLock:
    """A lock for one block at a time."""

    def __init__(self) -> None:
        self._mutex = threading.RLock()  # an interrupt cannot arrive between acquiring it and its block: both are in C
        self._freed = threading.Lock()  # locked until the next release: waiting threads acquire it
        self._holder: TransactionBlock | None = None

    def acquire(self, block: TransactionBlock, waiting: Wait) -> bool | None:
        """Acquire the lock for this block, waiting as long as the budget allows.

        Returns:
            True: the lock was free. False: its holder was interrupted, and its transaction has to be rolled back.
            None: the lock could not be acquired in time.

        Raises:
            RuntimeError: this thread is in a block already, as in a signal handler.
        """
        free = self._try(block, check=False)
        while free is None and (left := waiting.left) > 0:
            woken = self._freed.acquire(timeout=min(left, CHECK_INTERVAL))
            free = self._try(block, check=not woken)
        return free

    def _try(self, block: TransactionBlock, *, check: bool) -> bool | None:
        with self._mutex:
            if (holder := self._holder) is None:
                self._holder = block
                return True
            if (check or holder.is_here()) and holder.is_over():
                self._holder = block
                return False
            if holder.is_here():
                raise RuntimeError("This thread has an open transaction; a nested one would wait for itself.")
            return None

    def is_held_by(self, block: TransactionBlock) -> bool:
        """Whether this block holds the lock."""
        return self._holder is block

    def release(self, block: TransactionBlock) -> None:
        """Release the lock if this block holds it."""
        if self._holder is block:
            self._holder = None
            try:
                self._freed.release()
            except RuntimeError:
                return  # no thread has waited since the last release
