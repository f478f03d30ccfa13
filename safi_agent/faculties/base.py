"""What the faculties have in common: each is a Runnable that adds one key to the turn and changes none."""

from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.runnables import Runnable, RunnableConfig
from typing_extensions import override

from safi_agent.turn import Turn


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
        return self._call_with_config(self._add, input, config)

    @override
    async def ainvoke(self, input: Turn, config: RunnableConfig | None = None, **kwargs: Any) -> Turn:
        return await self._acall_with_config(self._aadd, input, config)

    def _add(self, turn: Turn, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Turn:
        return {**turn, self.adds: self.work(turn, config)}  # type: ignore[misc]

    async def _aadd(self, turn: Turn, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Turn:
        return {**turn, self.adds: await self.awork(turn, config)}  # type: ignore[misc]
