"""What the faculties have in common: each is a Runnable that adds one key to the turn and changes none."""

from typing import Any, ClassVar

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    BaseCallbackManager,
    CallbackManagerForChainRun,
)
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from typing_extensions import override

from safi_agent.turn import Turn


def watched(config: RunnableConfig) -> bool:
    """Whether anyone is to be told of the run; if not, there is no need to make one, and time to be saved."""
    callbacks = config.get("callbacks")
    return not isinstance(callbacks, BaseCallbackManager) or bool(callbacks.handlers)


def run(steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
    """Go through a sequence of faculties."""
    if watched(config) or not isinstance(steps, RunnableSequence):
        return steps.invoke(turn, config)
    for step in steps.steps:
        turn = step.invoke(turn, config)
    return turn


async def arun(steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
    """The same without blocking."""
    if watched(config) or not isinstance(steps, RunnableSequence):
        return await steps.ainvoke(turn, config)
    for step in steps.steps:
        turn = await step.ainvoke(turn, config)
    return turn


class Faculty(Runnable[Turn, Turn]):
    """A step: settings in the constructor, state in the turn."""

    adds: ClassVar[str]

    def work(self, turn: Turn, config: RunnableConfig) -> Any:
        """What to add."""
        raise NotImplementedError

    async def awork(self, turn: Turn, config: RunnableConfig) -> Any:
        """The same; a faculty that waits for a model waits here without a thread."""
        return self.work(turn, config)

    @override
    def invoke(self, input: Turn, config: RunnableConfig | None = None, **kwargs: Any) -> Turn:
        if config is not None and not watched(config):
            return {**input, self.adds: self.work(input, config)}  # type: ignore[misc]
        return self._call_with_config(self._add, input, config)

    @override
    async def ainvoke(self, input: Turn, config: RunnableConfig | None = None, **kwargs: Any) -> Turn:
        if config is not None and not watched(config):
            return {**input, self.adds: await self.awork(input, config)}  # type: ignore[misc]
        return await self._acall_with_config(self._aadd, input, config)

    def _add(self, turn: Turn, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Turn:
        return {**turn, self.adds: self.work(turn, config)}  # type: ignore[misc]

    async def _aadd(self, turn: Turn, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Turn:
        return {**turn, self.adds: await self.awork(turn, config)}  # type: ignore[misc]
