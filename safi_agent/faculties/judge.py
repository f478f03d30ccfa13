"""Asking a model for JSON: structured output where it has it, plain text where not, and at most two calls."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableParallel, RunnableSequence

from safi_agent.parsing import parse_json

T = TypeVar("T")
Model = Runnable[Any, Any]
Read = Callable[[Any], T | None]
Answer = tuple[T | None, UsageMetadata | None]
AGAIN = "Your reply could not be used. Reply again with the JSON object alone, complete, and with nothing around it."


@dataclass(frozen=True)
class Judge:
    """A model that answers in JSON of one schema; ``retry`` asks once more when a reply cannot be used."""

    model: Model
    structured: Model | None
    retry: bool

    @classmethod
    def of(cls, model: Model, schema: dict[str, Any], *, retry: bool) -> "Judge":
        """Use the model's structured output if it has one."""
        structured: Model | None = None
        if isinstance(model, BaseChatModel):
            try:
                structured = _unread(model.with_structured_output(schema, include_raw=True))
            except (NotImplementedError, ValueError, TypeError, AttributeError):
                structured = None
        return cls(model, structured, retry)

    def ask(self, messages: Sequence[BaseMessage], read: Read[T], config: RunnableConfig) -> Answer[T]:
        """What ``read`` makes of the reply (None: nothing usable came), and the tokens spent.

        Raises:
            Exception: whatever the model raises, unless a plain call may do without what was refused.
        """
        steps = self._ladder(list(messages), read)
        call = next(steps)
        while True:
            try:
                model, asked = call
                reply: Any = model.invoke(asked, config)
            except Exception as error:
                reply = error
            try:
                call = steps.send(reply)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    async def aask(self, messages: Sequence[BaseMessage], read: Read[T], config: RunnableConfig) -> Answer[T]:
        """The same without blocking."""
        steps = self._ladder(list(messages), read)
        call = next(steps)
        while True:
            try:
                model, asked = call
                reply: Any = await model.ainvoke(asked, config)
            except Exception as error:
                reply = error
            try:
                call = steps.send(reply)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    def _ladder(
        self, messages: list[BaseMessage], read: Read[T]
    ) -> Generator[tuple[Model, list[BaseMessage]], Any, Answer[T]]:
        usage: UsageMetadata | None = None
        if self.structured is not None:
            reply = yield self.structured, messages
            if isinstance(reply, Exception) and not _unsupported(reply):
                raise reply
            if not isinstance(reply, Exception):
                message = reply["raw"] if isinstance(reply, dict) else reply
                usage = _usage(message)
                found = _read(message, read)
                if found is not None or not self.retry or _declined(message):
                    return found, usage
        reply = yield self.model, messages
        if self.structured is None and self.retry and not isinstance(reply, Exception):
            usage = _usage(reply)
            if (found := _read(reply, read)) is not None:
                return found, usage
            reply = yield self.model, [*messages, HumanMessage(AGAIN)]
        if isinstance(reply, Exception):
            raise reply
        return _read(reply, read), add_usage(usage, _usage(reply)) if usage or _usage(reply) else None


def _unread(structured: Model) -> Model:
    """The call alone, where LangChain would read the reply too: that is done here, and once is enough.

    A model whose structured output is built in another way is asked as it is.
    """
    if isinstance(structured, RunnableSequence) and isinstance(structured.first, RunnableParallel):
        return structured.first.steps__.get("raw", structured)
    return structured


def _usage(message: Any) -> UsageMetadata | None:
    return message.usage_metadata if isinstance(message, AIMessage) else None


def _read(message: Any, read: Read[T]) -> T | None:
    """The reply's JSON, from a tool call if it made one, read; None where it has none."""
    if isinstance(message, str):
        data = parse_json(message)
    elif not isinstance(message, AIMessage) or len(message.tool_calls) > 1:
        return None
    else:
        data = message.tool_calls[0]["args"] if message.tool_calls else parse_json(str(message.text))
    return None if data is None else read(data)


def _unsupported(error: Exception) -> bool:
    """Whether a model said that it cannot answer in a schema, so that a plain call may do."""
    return isinstance(error, NotImplementedError | ValueError | TypeError | KeyError) or (
        getattr(error, "status_code", None) in (400, 404, 422)
    )


def _declined(message: Any) -> bool:
    return bool(getattr(message, "additional_kwargs", {}).get("refusal"))
