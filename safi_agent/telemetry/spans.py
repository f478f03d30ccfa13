"""Spans of a turn and of its faculties.

A turn is the span ``invoke_workflow safi``, with the children ``invoke_agent Intellect`` and ``invoke_agent Will``. Its
trace context is stored with the turn, so that the spans of the audit become its children too, in whichever process.

Exceptions are not recorded on spans, because their texts may quote a draft: a span has the type of the error only.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from langchain_core.messages import AIMessage
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from safi_agent.error_boundary import PassThrough
from safi_agent.errors import IntellectError, ViolationError
from safi_agent.telemetry import SCOPE, metrics
from safi_agent.telemetry.attributes import (
    AGENT,
    DECISION,
    ERROR_TYPE,
    OPERATION,
    REQUEST_MODEL,
    RULE,
    VALUE_SET,
    WORKFLOW,
    Attributes,
    answer_attributes,
    describe,
    turn_contents,
)
from safi_agent.turn import Turn

log = logging.getLogger("safi_agent")
TraceContext = Mapping[str, str]  # the headers of W3C Trace Context: traceparent, tracestate
TURN = "invoke_workflow safi"

tracer = trace.get_tracer(SCOPE)
_propagator = TraceContextTextMapPropagator()
_SCOPE = context.create_key("safi-scope")


@dataclass
class TraceScope:
    """What the spans of a turn share.

    Attributes:
        value_set: the name of the value set.
        models: the configured name of each faculty's model.
        contents: whether contents are exported.
        span: the span of the turn.
        decision: the Will's decision on the turn; empty as long as there is none.
    """

    value_set: str
    models: Mapping[str, str]
    contents: bool
    span: Span = field(default=INVALID_SPAN)
    decision: str = ""


def current_scope() -> TraceScope | None:
    """The scope of the current turn or audit."""
    scope = context.get_value(_SCOPE)
    return scope if isinstance(scope, TraceScope) else None


@contextmanager
def turn_span(scope: TraceScope) -> Iterator[None]:
    """The span of a turn, whose duration is measured."""
    begun, failed = time.perf_counter(), ""
    attributes: Attributes = {OPERATION: "invoke_workflow", WORKFLOW: "safi", VALUE_SET: scope.value_set}
    try:
        with open_span(TURN, attributes, context.set_value(_SCOPE, scope)) as scope.span:
            yield
    except BaseException as error:
        failed = error_type(error)
        raise
    finally:
        metrics.record_turn(time.perf_counter() - begun, scope.value_set, scope.decision, failed)


@contextmanager
def call_scope(scope: TraceScope) -> Iterator[None]:
    """The context of work outside of a turn, such as a ruling on a tool call; hides the scope of a surrounding turn."""
    with _current(context.set_value(_SCOPE, scope)):
        yield


@contextmanager
def audit_scope(scope: TraceScope, stored: TraceContext | None) -> Iterator[None]:
    """The context of an audit: its spans are children of the turn's span, whose trace context was stored.

    The duration of the audit is measured.
    """
    begun, failed = time.perf_counter(), ""
    parent = turn_context(stored)
    try:
        with _current(context.set_value(_SCOPE, scope, parent)):
            yield
    except BaseException as error:
        failed = error_type(error)
        raise
    finally:
        metrics.record_attempt(time.perf_counter() - begun, scope.value_set, failed)


class FacultySpan:
    """The span of a faculty, which gets the attributes of its result."""

    def __init__(self, span: Span, scope: TraceScope) -> None:
        self._span, self._scope = span, scope

    def set_result(self, result: object) -> None:
        """Set the attributes of a result."""
        if not self._span.is_recording():
            return
        attributes, contents, error = describe(result)
        self._span.set_attributes({**attributes, **contents} if self._scope.contents else attributes)
        if error:
            set_error(self._span, error)


@contextmanager
def faculty_span(name: str) -> Iterator[FacultySpan | None]:
    """The span of a faculty; None outside of a turn and an audit."""
    scope = current_scope()
    if scope is None:
        yield None
        return
    attributes: Attributes = {OPERATION: "invoke_agent", AGENT: name}
    if model := scope.models.get(name.lower()):
        attributes[REQUEST_MODEL] = model
    with open_span(f"invoke_agent {name}", attributes, context.get_current()) as span:
        yield FacultySpan(span, scope)


@contextmanager
def open_span(name: str, attributes: Attributes, parent: Context, start_time: int | None = None) -> Iterator[Span]:
    """A span that is the current one within the context.

    An SDK that fails is logged and changes nothing else.
    """
    span: Span = INVALID_SPAN
    try:
        span = tracer.start_span(name, parent, attributes=attributes, start_time=start_time)
    except Exception as error:
        log.error("The span %r could not be started.", name, exc_info=error)
    try:
        with _current(trace.set_span_in_context(span, parent)):
            yield span
    except BaseException as error:
        if not is_violation(error):
            set_error(span, error_type(error))
        raise
    finally:
        try:
            span.end()
        except Exception as error:
            log.error("The span %r could not be ended.", name, exc_info=error)


@contextmanager
def _current(inner: Context) -> Iterator[None]:
    token = context.attach(inner)
    try:
        yield
    finally:
        # Not context.detach, which logs an error if an abandoned coroutine is closed in another context.
        with suppress(ValueError):
            token.var.reset(token)


def set_error(span: Span, error: str) -> None:
    """Mark a span as failed, with the type of the error."""
    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute(ERROR_TYPE, error)


def is_violation(error: BaseException) -> bool:
    """Whether this is a refusal, which is raised instead of returned, and no error."""
    return isinstance(error, ViolationError)


def error_type(error: BaseException) -> str:
    """The name of an error's class; empty for a refusal.

    >>> error_type(ValueError("text")), error_type(IntellectError("Timeout", TimeoutError))
    ('ValueError', 'TimeoutError')
    """
    if is_violation(error):
        return ""
    if isinstance(error, PassThrough):
        return error_type(error.error)
    kind = error.cause_type if isinstance(error, IntellectError) else type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def record_answer(answer: AIMessage) -> None:
    """Set the attributes of the turn's answer on the span of the turn."""
    if (scope := current_scope()) is None:
        return
    attributes = answer_attributes(answer)
    scope.decision = str(attributes[DECISION])
    scope.span.set_attributes(attributes)


def record_release(turn: Turn, final: str) -> None:
    """Set the rule that decided and, on request, the contents of a turn on its span."""
    if (scope := current_scope()) is None or not scope.span.is_recording():
        return
    scope.span.set_attribute(RULE, turn["verdict"].code)
    if scope.contents:
        scope.span.set_attributes(turn_contents(turn, final))


def trace_context() -> dict[str, str]:
    """The trace context of the current turn, to be stored with it; empty if there is no trace."""
    carrier: dict[str, str] = {}
    scope = current_scope()
    _propagator.inject(carrier, None if scope is None else trace.set_span_in_context(scope.span, Context()))
    return carrier


def turn_context(stored: TraceContext | None) -> Context:
    """The context of the span of a turn, from its stored trace context; empty without one."""
    return _propagator.extract(stored, Context()) if stored else Context()
