"""Bare LangChain, and SAFi on it."""

from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from benchmarks.governance.runner import Contender
from safi_agent import SafiMiddleware, create_safi_chain

VALUES = "unesco"


def model(url: str, who: str) -> ChatOpenAI:
    """A client of the model on loopback, without retries, so that each call is a single request."""
    return ChatOpenAI(model="m", base_url=f"{url}/{who}/v1", api_key="none", max_retries=0)  # type: ignore[arg-type]


def kept(folder: Path, who: str) -> dict[str, Any]:
    """The store of a contender."""
    return {"store": f"sqlite:///{folder}/{who}.db", "log": folder / f"{who}.json"}


def bare(url: str, folder: Path) -> Contender:
    chat = model(url, "bare")

    async def turn(question: str) -> str:
        return str((await chat.ainvoke(question)).text)

    return Contender(turn)


def twice(url: str, folder: Path) -> Contender:
    """Two calls in sequence: the lower bound of any check by a model."""
    chat = model(url, "twice")

    async def turn(question: str) -> str:
        await chat.ainvoke(question)
        return str((await chat.ainvoke(question)).text)

    return Contender(turn)


def chain(url: str, folder: Path) -> Contender:
    safi = create_safi_chain(model(url, "chain"), VALUES, **kept(folder, "chain"))

    async def turn(question: str) -> str:
        return str((await safi.ainvoke(question)).text)

    return Contender(turn, lambda: safi.drain(None))


def agent(url: str, folder: Path) -> Contender:
    bare_agent: Any = create_agent(model(url, "agent"))

    async def turn(question: str) -> str:
        said = await bare_agent.ainvoke({"messages": [HumanMessage(question)]})
        return str(said["messages"][-1].text)

    return Contender(turn)


def middleware(url: str, folder: Path) -> Contender:
    chat = model(url, "middleware")
    safi = SafiMiddleware(VALUES, model=chat, **kept(folder, "middleware"))
    governed: Any = create_agent(chat, middleware=[safi])

    async def turn(question: str) -> str:
        said = await governed.ainvoke({"messages": [HumanMessage(question)]})
        return str(said["messages"][-1].text)

    return Contender(turn, lambda: safi.drain(None))


def contenders(url: str, folder: Path) -> dict[str, Contender]:
    made = {"bare": bare, "twice": twice, "chain": chain, "agent": agent, "middleware": middleware}
    return {name: make(url, folder) for name, make in made.items()}
