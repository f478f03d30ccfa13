"""The errors of the package. Catch ``SafiError`` to catch all of them.

SafiError
├── IntellectError     the model returned no draft
├── OutboxError        the turn could not be made durable, so the answer was withheld
├── BacklogError       too many audits are open, so the turn was not started
├── ConscienceError    the judge returned no usable ledger; retried by the audit branch, never raised to callers
├── UnknownTurnError   the store has no turn of this id
├── AuditTimeoutError  the audit was not finished in time
├── AuditFailedError   all attempts of the audit failed
├── ViolationError     the Will refused, and ``raise_on_violation`` is set
│   └── JudgeUnavailableError  the Will's judge could not be asked
├── LogError           the log cannot be written or checked: its key is missing or differs
└── ClosedError        the chain was closed

No error text quotes a model, and no error that reaches the caller refers to a frame, a cause or a note of the turn: an
exception must not reveal a draft. The arguments of an error are those of its class, so that it can be copied and
pickled.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class SafiError(Exception):
    """Base of all errors of this package."""


class IntellectError(SafiError):
    """The Intellect's model returned no draft.

    A retry can depend on the type and status of the model's error, whose text is not passed on::

        def is_rate_limit(error: Exception) -> bool:
            return isinstance(error, IntellectError) and error.status_code == 429

        create_agent(model, tools, middleware=[ModelRetryMiddleware(retry_on=is_rate_limit), SafiMiddleware(...)])

    Attributes:
        cause: the class name of the model's exception, with its HTTP status if it has one.
        cause_type: its class, for ``issubclass(error.cause_type, openai.RateLimitError)``.
        status_code: its HTTP status, 100 to 599; None if it has none.
    """

    def __init__(self, cause: str, cause_type: type[BaseException] = Exception, status_code: int | None = None) -> None:
        super().__init__(cause, cause_type, status_code)
        self.cause, self.cause_type, self.status_code = cause, cause_type, status_code

    @classmethod
    def of(cls, error: BaseException) -> "IntellectError":
        """The error for an exception of a model, without its text."""
        name, status = type(error).__name__, status_of(error)
        return cls(name if status is None else f"{name}, status {status}", type(error), status)

    def __str__(self) -> str:
        return f"The Intellect's model returned no draft ({self.cause}). Details are in the logger 'safi_agent'."


class OutboxError(SafiError):
    """The turn could not be written to the store, so its answer is withheld; ``cause`` names the exception."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"The turn could not be made durable ({self.cause}), so its answer is withheld."


class RedactionError(SafiError):
    """``redact`` failed, so nothing of the turn was stored and its answer is withheld.

    ``cause`` is the class name of its exception, or of what it returned instead of a text.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"redact: expected a function that returns a text, got {self.cause}. The answer is withheld."


class BacklogError(SafiError):
    """``max_pending`` audits are open, so the turn was not started.

    ``depth`` is the number of open audits, ``most`` is ``max_pending``.
    """

    def __init__(self, depth: int, most: int) -> None:
        super().__init__(depth, most)
        self.depth, self.most = depth, most

    def __str__(self) -> str:
        return (
            f"{self.depth:,} audits are open, and max_pending is {self.most:,}: the turn was not started. Retry "
            "later; chain.backlog() shows the open audits."
        )


class UnknownTurnError(SafiError):
    """The store has no turn of this id."""

    def __init__(self, turn_id: str) -> None:
        super().__init__(turn_id)
        self.turn_id = turn_id

    def __str__(self) -> str:
        return (
            f"turn_id: expected the id of a turn in this store, got {self.turn_id!r}. It is in the answer's "
            'response_metadata["safi"]["turnId"].'
        )


class AuditTimeoutError(SafiError):
    """The audit of a turn was not finished within ``timeout`` seconds; it continues."""

    def __init__(self, turn_id: str, timeout: float) -> None:
        super().__init__(turn_id, timeout)
        self.turn_id, self.timeout = turn_id, timeout

    def __str__(self) -> str:
        return (
            f"The audit of turn {self.turn_id!r} was not finished within {self.timeout:g} s. It continues: ask again, "
            "or see chain.drain(0).blocked for what it waits for."
        )


class AuditFailedError(SafiError):
    """All attempts of a turn's audit failed, so it has no score; ``cause`` is the Spirit's sentence on it.

    The audit of a turn whose contents were ``erased`` cannot be repeated.
    """

    def __init__(self, turn_id: str, cause: str, erased: bool = False) -> None:
        super().__init__(turn_id, cause, erased)
        self.turn_id, self.cause, self.erased = turn_id, cause, erased

    def __str__(self) -> str:
        cure = f"chain.reaudit([{self.turn_id!r}]) repeats it."
        if self.erased:
            cure = "The turn is erased, so its audit cannot be repeated."
        return f"Turn {self.turn_id!r}: {self.cause} {cure}"


class ConscienceError(SafiError):
    """The judge returned no ledger that covers the values."""


class ViolationError(SafiError):
    """The Will refused the draft; the text is the fixed refusal, ``metadata`` is that of the refused answer."""

    def __init__(self, refusal: str, metadata: Mapping[str, Any]) -> None:
        super().__init__(refusal, metadata)
        self.refusal, self.metadata = refusal, dict(metadata)

    def __str__(self) -> str:
        return self.refusal


class JudgeUnavailableError(ViolationError):
    """The model of the Will's judge failed, so that there is no decision on the draft and its answer is withheld.

    The text is ``outage_message`` or, without one, the fixed refusal. It is a ViolationError, so that code which
    handles refusals withholds the answer here too.
    """


class LogError(SafiError):
    """The log cannot be written or checked; lines to write are kept in the store."""


class ClosedError(SafiError):
    """The chain was closed and accepts no more turns."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a provider's error or of its response; None if there is none."""
    for owner in (error, getattr(error, "response", None)):
        for name in ("status_code", "code", "status", "http_status"):
            status = getattr(owner, name, None)
            if isinstance(status, int) and 100 <= status <= 599:
                return int(status)
    return None


def validation_message(error: "ValidationError") -> str:
    """The locations and messages of a ValidationError, on one line."""
    details = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors(include_input=False)]
    return "; ".join(
        f"{f'{location}: ' if location else ''}{message.removeprefix('Value error, ')}" for location, message in details
    )
