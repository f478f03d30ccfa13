"""What can go wrong. Catch ``SafiError`` to catch all of it.

SafiError
├── IntellectError   no draft came
├── OutboxError      the turn could not be made durable, so the answer was withheld
├── BacklogError     too many audits are open, so the turn was not begun
├── ConscienceError  no usable ledger came; the audit branch retries, callers never see it
├── ViolationError   the Will refused, and ``raise_on_violation`` was asked for
├── LogError         the log cannot be written on or checked: its key is missing or another
└── ClosedError      the chain was closed

No text here ever quotes a model: what a draft said must not leave by way of an exception.
"""

from collections.abc import Mapping
from typing import Any


class SafiError(Exception):
    """Base of all errors of this package."""


class IntellectError(SafiError):
    """The Intellect's model gave no draft; ``cause`` is the name of what its model raised."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"The Intellect's model gave no draft ({cause}). Details are in the logger 'safi_agent'.")
        self.cause = cause


class OutboxError(SafiError):
    """The turn could not be written to the store, so no answer left."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"The turn could not be made durable ({cause}), so its answer is withheld.")
        self.cause = cause


class BacklogError(SafiError):
    """As many audits are open as may be, so the turn was not begun; ``depth`` says how many."""

    def __init__(self, depth: int, most: int) -> None:
        super().__init__(
            f"{depth:,} audits are open, and max_pending is {most:,}: the turn was not begun. Try again later, or see "
            "chain.backlog()."
        )
        self.depth = depth


class ConscienceError(SafiError):
    """The judge gave no ledger that covers the values."""


class ViolationError(SafiError):
    """The Will refused; the text is the fixed refusal, ``metadata`` that of the refused answer."""

    def __init__(self, refusal: str, metadata: Mapping[str, Any]) -> None:
        super().__init__(refusal)
        self.metadata = dict(metadata)


class LogError(SafiError):
    """The log cannot be written on, or checked; what is to be logged waits in the store."""


class ClosedError(SafiError):
    """The chain was closed and takes no more turns."""
