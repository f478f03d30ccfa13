"""The error boundary of a turn: an exception raised inside is replaced by a new one without the turn's data.

An exception refers to more than its text: the frames of its traceback have drafts, reflections and verdicts among their
local variables, and so have its causes and contexts. A turn therefore runs in a function that returns an outcome, which
is a value or a new error, and that error is raised in a frame without references to the turn.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from typing_extensions import override

from safi_agent.errors import SafiError

T = TypeVar("T")
log = logging.getLogger("safi_agent")
# anyio recognises the cancellations of its own scopes by this text.
_SCOPE = re.compile(r"Cancelled (?:by|via) cancel scope [0-9a-f]{1,16}")


class PassThrough(BaseException):
    """Carries an error that leaves the boundary unchanged; a BaseException, so that ``except Exception`` misses it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Outcome(NamedTuple, Generic[T]):
    """A return value, or an error that may leave the boundary."""

    value: T | None = None
    error: BaseException | None = None


def contain_errors(work: Callable[[], T]) -> T:
    """Return what ``work`` returns; ``work`` itself must not refer to data of the turn.

    Raises:
        SafiError: any other exception inside; neither the error nor any object reachable from it contains data of the
            turn.
        TypeError, ValueError: the input is invalid, see ``input_errors``.
        KeyboardInterrupt, SystemExit, CancelledError, GeneratorExit: of the same type, without their text.
    """
    # Twice: Ctrl-C may arrive while the first one cleans up.
    return _unwrap(_flatten(_outcome(partial(_outcome, work))))


async def acontain_errors(work: Callable[[], Awaitable[T]]) -> T:
    """Asynchronous version."""
    with _guarded_tasks() as stops:
        outcome = _flatten(await _aoutcome(partial(_aoutcome, work)))
    for stop in stops:  # the results of tasks still refer to it
        stop.__traceback__ = stop.__context__ = None
    if stops:
        outcome = Outcome(error=stops[0].error)
    if isinstance(outcome.error, KeyboardInterrupt | SystemExit):
        # It is raised in the event loop, which still refers to the event that resumed this task.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
    try:
        return _unwrap(outcome)
    finally:
        del outcome, stops


def _flatten(outcome: Outcome[Outcome[T]]) -> Outcome[T]:
    return Outcome(error=outcome.error) if outcome.value is None else outcome.value


def _unwrap(outcome: Outcome[T]) -> T:
    try:
        if outcome.error is not None:
            raise outcome.error
        return outcome.value  # type: ignore[return-value]
    finally:
        del outcome  # otherwise the error's traceback would refer to the error


def _outcome(work: Callable[[], T]) -> Outcome[T]:
    try:
        return Outcome(value=work())
    except BaseException as error:
        return Outcome(error=clean(error))


async def _aoutcome(work: Callable[[], Awaitable[T]]) -> Outcome[T]:
    try:
        return Outcome(value=await work())
    except BaseException as error:
        return Outcome(error=clean(error))


def clean(error: BaseException) -> BaseException:
    """A new error of the same kind for the caller, without the texts and frames of the original.

    An interruption keeps its type. Any other BaseException becomes a SafiError, since it may refer to anything.
    """
    if isinstance(error, PassThrough):
        return error.error
    if isinstance(error, SafiError) and type(error).__module__ == SafiError.__module__:
        return type(error)(*error.args)
    if (stop := _interruption(error)) is not None:
        return stop
    log.error("A turn failed.", exc_info=error)
    return SafiError(f"The turn failed ({type(error).__name__}). Details are in the logger 'safi_agent'.")


def _interruption(error: BaseException) -> BaseException | None:
    """A new interruption (Ctrl-C, exit, cancellation, close) for ``error``; None if it is not one."""
    if isinstance(error, BaseExceptionGroup):
        interruptions = [
            inner.error if isinstance(inner, PassThrough) else _interruption(inner) for inner in error.exceptions
        ]
        return next((stop for stop in interruptions if isinstance(stop, KeyboardInterrupt | SystemExit)), None)
    if isinstance(error, SystemExit):
        code = error.code  # a text would be printed; the exit code is then 1
        return SystemExit(int(code) if isinstance(code, int) else None if code is None else 1)
    if isinstance(error, asyncio.CancelledError):
        scope = _cancelled_scope(error)
        return asyncio.CancelledError() if scope is None else asyncio.CancelledError(scope)
    return next((kind() for kind in (KeyboardInterrupt, GeneratorExit) if isinstance(error, kind)), None)


def _cancelled_scope(error: BaseException | None) -> str | None:
    """The text that marks a cancellation by a scope of anyio; None for any other.

    A library may have caught the cancellation and raised a new one. As anyio does, this looks at its contexts too.
    """
    while isinstance(error, asyncio.CancelledError):
        if error.args and isinstance(error.args[0], str) and (scope := _SCOPE.match(error.args[0])):
            return scope.group()
        error = error.__context__
    return None


@contextmanager
def input_errors() -> Iterator[None]:
    """A context in which errors about the caller's input leave with their type and, if built-in, their text."""
    try:
        yield
        return
    except (TypeError, ValueError, NotImplementedError) as error:
        instead = _clean_input_error(error)
    raise PassThrough(instead)


def _clean_input_error(error: Exception) -> Exception:
    kind = next(kind for kind in (TypeError, ValueError, NotImplementedError) if isinstance(error, kind))
    if type(error) is kind:
        return kind(str(error))
    log.error("A turn could not be started.", exc_info=error)  # subclasses contain the input that they could not read
    return kind(f"The turn could not be started ({type(error).__name__}). Details are in the logger 'safi_agent'.")


# Tasks created inside a turn. asyncio re-raises Ctrl-C and SystemExit of a task in the event loop, which stops with the
# task's frames in the traceback, and the code that awaits the task never cleans up. LangChain treats other
# interruptions in its own tasks as results. They are therefore recorded where they occur and raised at the boundary.

_stops: ContextVar[list[PassThrough] | None] = ContextVar("safi_stops", default=None)


class GuardedCoroutine(Coroutine[Any, Any, Any]):
    """Wraps a task's coroutine: records interruptions and raises them as PassThrough."""

    def __init__(self, coroutine: Any, stops: list[PassThrough]) -> None:
        self.coroutine, self.stops = coroutine, stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self.coroutine, name)  # cr_frame and similar attributes

    @override
    def send(self, value: Any) -> Any:
        return self._step(partial(self.coroutine.send, value))

    @override
    def throw(self, *error: Any) -> Any:
        return self._step(partial(self.coroutine.throw, *error))

    @override
    def close(self) -> None:
        self.coroutine.close()

    @override
    def __await__(self) -> Generator[Any, Any, Any]:
        return self.coroutine.__await__()  # type: ignore[no-any-return]

    def _step(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except (Exception, asyncio.CancelledError, GeneratorExit, PassThrough):
            raise
        except BaseException as error:
            stop = PassThrough(clean(error))
        self.stops.append(stop)
        raise stop


class TaskFactory:
    """A task factory that wraps the tasks of turns, so that their interruptions cannot stop the event loop."""

    def __init__(self, before: Any) -> None:
        self.before, self.turns = before, 0

    def __call__(self, loop: Any, coroutine: Any, **settings: Any) -> Any:
        """A task of this loop."""
        stops = _stops.get()
        guarded = coroutine if stops is None else GuardedCoroutine(coroutine, stops)
        if self.before is None:
            return asyncio.Task(guarded, loop=loop, **settings)
        return self.before(loop, guarded, **settings)


@contextmanager
def _guarded_tasks() -> Iterator[list[PassThrough]]:
    """A context in which tasks are guarded; yields the list of their interruptions."""
    loop = asyncio.get_running_loop()
    previous = loop.get_task_factory()
    factory = previous if isinstance(previous, TaskFactory) else TaskFactory(previous)
    if factory is not previous:
        loop.set_task_factory(factory)
    factory.turns += 1
    around, stops = _stops.get(), list[PassThrough]()
    _stops.set(stops)
    try:
        yield stops
    finally:
        _stops.set(around)
        factory.turns -= 1
        if not factory.turns and loop.get_task_factory() is factory:
            loop.set_task_factory(factory.before)
