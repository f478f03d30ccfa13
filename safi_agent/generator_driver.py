"""Drive a generator of requests, once synchronously and once asynchronously, so that a flow is written only once.

The generator yields a request, receives its result and finally returns a value. An exception raised by ``perform``
leaves the driver unchanged and is not thrown into the generator: a flow that handles failures lets ``perform`` return
them (see ``Judge`` and ``JudgeCall``).
"""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

Request = TypeVar("Request")
T = TypeVar("T")


def drive(flow: Generator[Request, Any, T], perform: Callable[[Request], Any]) -> T:
    """Perform each request of the flow and return the flow's return value."""
    result: Any = None
    while True:
        try:
            request = flow.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        result = perform(request)


async def adrive(flow: Generator[Request, Any, T], perform: Callable[[Request], Awaitable[Any]]) -> T:
    """Asynchronous version of ``drive``."""
    result: Any = None
    while True:
        try:
            request = flow.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        result = await perform(request)
