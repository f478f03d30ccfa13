"""Agents for tests: a model that calls tools as a test says, and tools that remember what they did."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolCall
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import PrivateAttr

from safi_agent import SafiMiddleware
from tests.safi_agent.fakes import VIOLATION, Fake, approve, in_turn

THREAD: Any = {"configurable": {"thread_id": "t"}}
both = pytest.mark.parametrize("awaited", [False, True], ids=["sync", "async"])


class Calling(Fake):
    """A model that can be given tools; it remembers which it was given last."""

    _bound: list[Any] = PrivateAttr(default_factory=list)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        self._bound[:] = tools
        return self

    @property
    def bound(self) -> list[str]:
        return [tool["name"] if isinstance(tool, dict) else tool.name for tool in self._bound]


def call(name: str, call_id: str = "1", **args: Any) -> ToolCall:
    return ToolCall(name=name, args=args, id=call_id, type="tool_call")


def calls(*made: ToolCall, text: Any = "", **fields: Any) -> AIMessage:
    return AIMessage(text, tool_calls=list(made), **fields)


def on_words(word: str) -> Any:
    """A Will that refuses what has this word in it."""
    return lambda asked: VIOLATION if word in asked.partition("<draft>")[2] else approve()


class Tools:
    """``search(q)`` and ``pay(amount, to)``; what they did is in ``did``."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def search(self, q: str) -> str:
        """Search."""
        self.did.append(f"search {q}")
        return f"found {q}"

    def pay(self, amount: float, to: str = "no one") -> str:
        """Pay."""
        self.did.append(f"pay {amount:g} to {to}")
        return f"paid {amount:g}"

    def of(self, *names: str, **settings: Any) -> list[BaseTool]:
        return [StructuredTool.from_function(getattr(self, name), **settings) for name in names or ("search", "pay")]


def ask(agent: Any, awaited: bool = False, given: Any = "q", config: Any = None) -> dict[str, Any]:
    given = {"messages": [HumanMessage(given)]} if isinstance(given, str) else given
    return asyncio.run(agent.ainvoke(given, config)) if awaited else agent.invoke(given, config)


def texts(out: dict[str, Any]) -> list[str]:
    return [str(message.text) for message in out["messages"]]


def records(path: Path) -> list[dict[str, Any]]:
    file = path / "log.json"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def paying(middleware: SafiMiddleware, tools: Tools, *others: Any, saver: Any = None) -> tuple[Any, Calling]:
    made = calls(call("pay", "a", amount=1), call("pay", "b", amount=500))
    model = Calling(intellect=in_turn(made, "Done.", "And again."))
    middlewares = [*others, middleware]
    return create_agent(model, tools.of(), middleware=middlewares, checkpointer=saver or InMemorySaver()), model
