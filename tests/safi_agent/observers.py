"""Callback handlers, tracers and streams that observe a chain: for tests that no draft leaves it."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelResponse
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.context import collect_runs, register_configure_hook
from langgraph.graph import START, MessagesState, StateGraph

from safi_agent import SafiChain
from tests.safi_agent.fakes import Fake, in_turn

handler_of_all: ContextVar[Any] = ContextVar("handler_of_all", default=None)
register_configure_hook(handler_of_all, inheritable=True)


class Watcher(BaseCallbackHandler):
    """Keeps all that it is told, of every kind of event."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *args, **kwargs: self.seen.append(f"{name} {args!r} {kwargs!r}")
        return super().__getattribute__(name)


class AsyncWatcher(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_chain_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(repr((args, kwargs)))

    on_llm_end = on_llm_new_token = on_chain_error = on_chain_end


class Tracer(BaseTracer):
    """A tracer that a caller hangs on a run; not one of the operator's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def _persist_run(self, run: Any) -> None:
        self.seen.append(str(run.dict() if hasattr(run, "dict") else run))

    def _on_run_update(self, run: Any) -> None:
        self.seen.append(repr((run.inputs, run.outputs, run.error)))


def text_of(item: Any) -> str:
    """All text of messages in whatever a stream gave, in order: tokens come in pieces."""
    if isinstance(item, BaseMessage):
        chunks = getattr(item, "tool_call_chunks", [])
        return str(item.text) + "".join(str(chunk["args"]) for chunk in chunks)
    if isinstance(item, dict):
        return "".join(text_of(value) for value in item.values())
    if isinstance(item, list | tuple):
        return "".join(text_of(value) for value in item)
    return text_of(item.message) if hasattr(item, "message") else ""


def seen(items: list[Any]) -> str:
    return repr(items) + "".join(text_of(item) for item in items)


async def collect(stream: Any) -> str:
    return seen([item async for item in stream])


def graph_of(safi: Any) -> Any:
    node = RunnableLambda(lambda state: state["messages"]) | safi | (lambda message: {"messages": [message]})
    return StateGraph(MessagesState).add_node("safi", node).add_edge(START, "safi").compile()


class Governed(AgentMiddleware):
    """An agent whose model call is a governed answer."""

    def __init__(self, safi: SafiChain) -> None:
        super().__init__()
        self.safi = safi

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return ModelResponse(result=[self.safi.invoke(request.messages)])

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return ModelResponse(result=[await self.safi.ainvoke(request.messages)])


def by_invoke(safi: SafiChain) -> str:
    return repr(safi.invoke("q"))


def by_stream(safi: SafiChain) -> str:
    return repr(list(safi.stream("q")) + list((safi | StrOutputParser()).stream("q")))


def by_astream(safi: SafiChain) -> str:
    return asyncio.run(collect((safi | StrOutputParser()).astream("q")))


def by_events(safi: SafiChain) -> str:
    return asyncio.run(collect((safi | StrOutputParser()).astream_events("q", version="v2")))


def by_log(safi: SafiChain) -> str:
    return asyncio.run(collect(safi.astream_log("q")))


MODES: Any = ["messages", "updates", "values", "custom", "debug", "tasks"]


def by_graph(safi: SafiChain) -> str:
    return seen(list(graph_of(safi).stream({"messages": [HumanMessage("q")]}, stream_mode=MODES)))


def by_async_graph(safi: SafiChain) -> str:
    return asyncio.run(collect(graph_of(safi).astream({"messages": [HumanMessage("q")]}, stream_mode=MODES)))


def by_graph_events(safi: SafiChain) -> str:
    return asyncio.run(collect(graph_of(safi).astream_events({"messages": [HumanMessage("q")]}, version="v2")))


def by_agent(safi: SafiChain) -> str:
    agent = create_agent(Fake(), [], middleware=[Governed(safi)])
    sync = seen(list(agent.stream({"messages": [HumanMessage("q")]}, stream_mode=MODES)))
    return sync + asyncio.run(collect(agent.astream({"messages": [HumanMessage("q")]}, stream_mode=MODES)))


def by_agent_tool(safi: SafiChain) -> str:
    @tool
    def ask(question: str) -> str:
        """Ask."""
        return str(safi.invoke(question).text)

    calls = AIMessage("", tool_calls=[{"name": "ask", "args": {"question": "q"}, "id": "1"}])

    class Calls(Fake):
        def bind_tools(self, *args: Any, **kwargs: Any) -> Any:
            return self

    agent = create_agent(Calls(intellect=in_turn(calls, AIMessage("done"))), [ask])
    return seen(list(agent.stream({"messages": [HumanMessage("q")]}, stream_mode=MODES)))


def by_callbacks(safi: SafiChain) -> str:
    watcher, tracer = Watcher(), Tracer()
    safi.invoke("q", {"callbacks": [watcher, tracer]})
    (safi | StrOutputParser()).with_config(callbacks=[watcher]).invoke("q")
    return repr(watcher.seen + tracer.seen)


def by_async_callbacks(safi: SafiChain) -> str:
    watcher, other, tracer = AsyncWatcher(), Watcher(), Tracer()
    asyncio.run((safi | StrOutputParser()).ainvoke("q", {"callbacks": [watcher, other, tracer]}))
    return repr(watcher.seen + other.seen + tracer.seen)


def by_context(safi: SafiChain) -> str:
    watcher = Watcher()
    token = handler_of_all.set(watcher)
    try:
        with collect_runs() as runs:
            safi.invoke("q")
            asyncio.run(safi.ainvoke("q"))
        return repr(watcher.seen) + "".join(str((r.inputs, r.outputs, r.child_runs)) for r in runs.traced_runs)
    finally:
        handler_of_all.reset(token)


DOORS: list[Callable[[SafiChain], str]] = [value for name, value in sorted(globals().items()) if name.startswith("by_")]


def secret() -> str:
    return f"canary{uuid4().hex}"
