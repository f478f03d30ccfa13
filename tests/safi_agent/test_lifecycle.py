"""A chain, and a middleware built on one, waits for its audits and takes no turn once it is closed."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent

from safi_agent import ClosedError
from tests.safi_agent.agents.calling import Calling, ask


def test_a_closed_chain_takes_no_turn(make: Any) -> None:
    with make() as safi:
        safi.invoke("a")
    with pytest.raises(ClosedError):
        safi.invoke("b")

    async def awaited() -> None:
        async with make() as other:
            await other.ainvoke("a")
        with pytest.raises(ClosedError):
            await other.ainvoke("b")

    asyncio.run(awaited())


def test_a_closed_middleware_takes_no_turn(govern: Any) -> None:
    with govern() as middleware:
        agent = create_agent(Calling(), [], middleware=[middleware])
        ask(agent)
    with pytest.raises(ClosedError):
        ask(agent)


def test_a_middleware_waits_without_blocking(govern: Any) -> None:
    async def awaited() -> None:
        async with govern() as middleware:
            await create_agent(Calling(), [], middleware=[middleware]).ainvoke({"messages": [("human", "a")]})
            assert await middleware.adrain() == 1

    asyncio.run(awaited())
