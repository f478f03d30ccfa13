"""A chain whose settings are chosen at each call: awaited, it is made on a thread, because it opens its store."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.configurable import RunnableConfigurableFields
from typing_extensions import override


class ConfiguredOnThread(RunnableConfigurableFields[Any, Any]):
    """What ``configurable_fields`` gives; LangChain's own makes the chain on the caller's loop."""

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        return await runnable.ainvoke(input, prepared, **kwargs)

    @override
    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        return await Runnable.abatch(self, inputs, config, **kwargs)

    @override
    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        async for piece in runnable.astream(input, prepared, **kwargs):
            yield piece

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        async for piece in runnable.atransform(input, prepared, **kwargs):
            yield piece
