"""All ways by which something could leave an agent."""

import asyncio
from collections.abc import Callable
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.tracers.context import collect_runs
from langgraph.graph import START, MessagesState, StateGraph

from tests.safi_agent.agents.calling import ask
from tests.safi_agent.observers import AsyncWatcher, Tracer, Watcher, collect, handler_of_all, seen

MODES: Any = ["messages", "updates", "values", "custom", "debug", "tasks", "checkpoints"]
CONFIG: Any = {"configurable": {"thread_id": "t"}}


def given() -> Any:
    return {"messages": [HumanMessage("q")]}


def by_invoke(agent: Any) -> str:
    return repr(ask(agent, config=CONFIG)) + repr(list(agent.get_state_history(CONFIG)))


def by_stream(agent: Any) -> str:
    return seen(list(agent.stream(given(), CONFIG, stream_mode=MODES)))


def by_messages(agent: Any) -> str:
    return seen(list(agent.stream(given(), CONFIG, stream_mode="messages")))


def by_astream(agent: Any) -> str:
    return asyncio.run(collect(agent.astream(given(), CONFIG, stream_mode=MODES)))


def by_async_messages(agent: Any) -> str:
    return asyncio.run(collect(agent.astream(given(), CONFIG, stream_mode="messages")))


def by_events(agent: Any) -> str:
    return asyncio.run(collect(agent.astream_events(given(), CONFIG, version="v2")))


def by_new_events(agent: Any) -> str:
    async def read() -> str:
        run = await agent.astream_events(given(), CONFIG, version="v3")
        messages = [[piece async for piece in message.text] async for message in run.messages]
        return repr(messages) + "".join(piece for message in messages for piece in message) + repr(await run.output())

    return asyncio.run(read())


def by_subgraph(agent: Any) -> str:
    graph = StateGraph(MessagesState).add_node("agent", agent).add_edge(START, "agent").compile()
    return seen(list(graph.stream(given(), CONFIG, stream_mode=MODES, subgraphs=True)))


def by_callbacks(agent: Any) -> str:
    watcher, tracer = Watcher(), Tracer()
    agent.invoke(given(), {**CONFIG, "callbacks": [watcher, tracer]})
    return repr(watcher.seen + tracer.seen)


def by_async_callbacks(agent: Any) -> str:
    watcher, other, tracer = AsyncWatcher(), Watcher(), Tracer()
    asyncio.run(agent.ainvoke(given(), {**CONFIG, "callbacks": [watcher, other, tracer]}))
    return repr(watcher.seen + other.seen + tracer.seen)


def by_context(agent: Any) -> str:
    watcher = Watcher()
    token = handler_of_all.set(watcher)
    try:
        with collect_runs() as runs:
            agent.invoke(given(), CONFIG)
            asyncio.run(agent.ainvoke(given(), CONFIG))
        return repr(watcher.seen) + "".join(str((r.inputs, r.outputs, r.child_runs)) for r in runs.traced_runs)
    finally:
        handler_of_all.reset(token)


DOORS: list[Callable[[Any], str]] = [value for name, value in sorted(globals().items()) if name.startswith("by_")]
