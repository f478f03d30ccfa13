"""A chain whose settings are chosen at each call: awaited, it is made on a thread, because it opens its store."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.configurable import RunnableConfigurableFields
from langchain_core.runnables.utils import Input, Output
from typing_extensions import override


class ConfiguredOnThread(RunnableConfigurableFields[Input, Output]):
    """What ``configurable_fields`` gives; LangChain's own makes the chain on the caller's loop."""

    @override
    async def ainvoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        return await runnable.ainvoke(input, prepared, **kwargs)

    @override
    async def abatch(self, inputs: list[Input], config: Any = None, **kwargs: Any) -> list[Output]:
        return await Runnable.abatch(self, inputs, config, **kwargs)

    @override
    async def astream(
        self, input: Input, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Output]:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        async for piece in runnable.astream(input, prepared, **kwargs):
            yield piece

    @override
    async def atransform(
        self, input: AsyncIterator[Input], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Output]:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        async for piece in runnable.atransform(input, prepared, **kwargs):
            yield piece
