"""Taking a turn through a course, written once for those that wait and once for those that do not.

A course is a generator: it yields a faculty and the turn to take through it, gets the turn back, and returns what
leaves. Errors are raised as they came: a course is walked within ``boundary.contain`` alone.
"""

from collections.abc import Generator
from typing import Any, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig

from safi_agent.inside import Inside
from safi_agent.turn import Turn

T = TypeVar("T")
Course = Generator[tuple[Runnable[Turn, Turn], Turn], Turn, T]


def walk(inside: Inside, course: Course[T], config: RunnableConfig) -> T:
    """What the course returns."""
    back: Any = None
    while True:
        try:
            step, turn = course.send(back)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        back = inside.govern(step, turn, config)


async def awalk(inside: Inside, course: Course[T], config: RunnableConfig) -> T:
    """The same without blocking."""
    back: Any = None
    while True:
        try:
            step, turn = course.send(back)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        back = await inside.agovern(step, turn, config)
