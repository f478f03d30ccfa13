"""A model without latency in the same process, to measure the cost of governance alone."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from benchmarks.governance.server import reply, role_of
from safi_agent import SafiChain, create_safi_chain

AT_ONCE = 16


class Instant(BaseChatModel):
    """Answers for each faculty without delay, except that an audit takes ``audit_s`` seconds."""

    audit_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        system = str(messages[0].text)
        role = role_of([{"content": system}])
        if role == "audit" and self.audit_s:
            time.sleep(self.audit_s)
        text = reply(role, system)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return self._generate(messages)


def governed(folder: Path, *, audit_s: float = 0.0, **settings: Any) -> SafiChain:
    kept: dict[str, Any] = {"store": f"sqlite:///{folder}/safi.db", "log": folder / "log.json"}
    return create_safi_chain(Instant(audit_s=audit_s), "unesco", **kept, **settings)


async def answer(safi: SafiChain, turns: int) -> None:
    """Answer ``turns`` turns, some of them concurrently."""
    questions = iter(range(turns))

    async def ask(those: Iterator[int]) -> None:
        for i in those:
            await safi.ainvoke(f"Question {i}: should AI allocate vaccines?")

    await asyncio.gather(*(ask(questions) for _ in range(AT_ONCE)))
