"""Models, tools and handlers that raise exceptions containing a secret: in a text, a note, an attribute, a frame."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.embeddings import Embeddings
from langchain_core.outputs import ChatGeneration, ChatResult

from tests.safi_agent.agents.calling import Calling
from tests.safi_agent.fakes import Fake


class Odd(BaseException):
    """An exception class of no library."""


class Worded(Exception):
    """Carries words wherever an exception can."""

    def __init__(self, word: str) -> None:
        super().__init__(word, {"body": word})
        self.body = {"message": [word]}
        self.status_code = 429
        self.add_note(f"a note of {word}")


def breaks(kind: type[BaseException], word: str) -> Callable[[str], str]:
    """A reply that is this error, with the word in it, raised from another."""

    def reply(asked: str) -> str:
        draft = f"the draft was {word}"
        try:
            raise ValueError(draft)
        except ValueError as cause:
            raise kind(word) from cause

    return reply


def interrupts(_: str) -> str:
    """Ctrl-C, as the process gets it."""
    signal.raise_signal(signal.SIGINT)
    return "not reached"


class Awaited(Fake):
    """Is awaited on the loop itself, as an async client is, and not on a thread; may hang as the Will."""

    hangs: bool = False

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        if self.hangs and str(messages[0].text).startswith("You are the Will"):
            await asyncio.sleep(60)
        return ChatResult(generations=[ChatGeneration(message=self._text(messages))])


class AwaitedCalling(Calling, Awaited):
    """The same for agents."""


class BadEmbeddings(Embeddings):
    """Breaks on the drafts that it is to embed."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise self.kind(f"cannot embed {texts}")

    def embed_query(self, text: str) -> list[float]:
        raise self.kind(text)


class Raises(BaseCallbackHandler):
    """A handler that insists on its own errors, which quote what it was given."""

    raise_error = True

    def __init__(self, *events: str) -> None:
        self.events = events

    def _of(self, event: str, *given: Any) -> None:
        if event in self.events:
            raise RuntimeError(f"{event} {given!r}")

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self._of("on_llm_end", response)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self._of("on_chain_end", outputs)

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self._of("on_chain_error", error)


class Keeps(BaseCallbackHandler):
    """Keeps the errors that it is given."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)

    on_llm_error = on_tool_error = on_retriever_error = on_chain_error


class AsyncKeeps(AsyncCallbackHandler):
    """The same, awaited."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    async def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)

    on_llm_error = on_tool_error = on_chain_error
