"""Taking a turn through a course, written once for those that wait and once for those that do not.

A course is a generator: it yields a faculty and the turn to take through it, gets the turn back, and returns what
leaves.
"""

from collections.abc import Generator
from typing import TypeVar

from langchain_core.runnables import Runnable, RunnableConfig

from safi_agent.errors import SafiError
from safi_agent.inside import Inside, clean
from safi_agent.turn import Turn

T = TypeVar("T")
Course = Generator[tuple[Runnable[Turn, Turn], Turn], Turn, T]


def walk(inside: Inside, course: Course[T], config: RunnableConfig) -> T:
    """What the course returns.

    Raises:
        SafiError: anything went wrong; it says nothing of what happened inside.
    """
    failed: SafiError
    try:
        step, turn = next(course)
        while True:
            step, turn = course.send(inside.govern(step, turn, config))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except Exception as error:
        failed = clean(error)
    raise failed


async def awalk(inside: Inside, course: Course[T], config: RunnableConfig) -> T:
    """The same without blocking."""
    failed: SafiError
    try:
        step, turn = next(course)
        while True:
            step, turn = course.send(await inside.agovern(step, turn, config))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except Exception as error:
        failed = clean(error)
    raise failed
