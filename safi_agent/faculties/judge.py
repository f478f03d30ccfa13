"""Ask a model for one JSON object, with one retry if its reply cannot be used."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import RunnableConfig

from safi_agent.faculties.structured_output import Model, Schema, as_judge_model
from safi_agent.generator_driver import adrive, drive
from safi_agent.models import reply_model
from safi_agent.parsing import is_refusal, parse_reply

T = TypeVar("T")
Read = Callable[[dict[str, Any]], T | None]
Request = tuple[Model, list[BaseMessage]]
AGAIN = "Your reply could not be used. Reply again with the JSON object alone, complete, and with nothing around it."
_INCLUDED_RAW = {"raw", "parsed", "parsing_error"}
# OpenAI's client raises these for a truncated structured reply; it counts as an unclear reply.
_CUT_OFF = frozenset({"LengthFinishReasonError", "ContentFilterFinishReasonError"})


class JudgeReply(NamedTuple, Generic[T]):
    """The parsed reply (None if unusable), the token usage of all calls, and the model's name."""

    found: T | None
    usage: UsageMetadata | None = None
    model: str = ""


@dataclass(frozen=True)
class Judge:
    """A model that answers in JSON of one schema.

    With ``retry``, a reply that cannot be used is requested once more, without the schema. There are at most two
    replies, and at most three requests for each (``JudgeCall``).
    """

    structured: Model
    plain: Model
    retry: bool

    @classmethod
    def of(cls, model: Model, schema: Schema, *, retry: bool) -> "Judge":
        """Create a judge that uses the schema if the model supports it."""
        return cls(as_judge_model(model, schema), as_judge_model(model, None), retry)

    def ask(self, messages: Sequence[BaseMessage], read: Read[T], config: RunnableConfig) -> JudgeReply[T]:
        """Call the model and parse its reply.

        Raises:
            TypeError: the model returned something other than a str or an AIMessage.
            Exception: any exception of the model.
        """

        def perform(request: Request) -> Any:
            model, prompt = request
            try:
                return model.invoke(prompt, config)
            except Exception as error:
                return error

        return drive(self._replies(list(messages), read), perform)

    async def aask(self, messages: Sequence[BaseMessage], read: Read[T], config: RunnableConfig) -> JudgeReply[T]:
        """Asynchronous version of ``ask``."""

        async def perform(request: Request) -> Any:
            model, prompt = request
            try:
                return await model.ainvoke(prompt, config)
            except Exception as error:
                return error

        return await adrive(self._replies(list(messages), read), perform)

    def _replies(self, messages: list[BaseMessage], read: Read[T]) -> Generator[Request, Any, JudgeReply[T]]:
        reply = _reply((yield self.structured, messages))
        first = _answer(reply, read)
        if first.found is not None or not self.retry or (isinstance(reply, AIMessage) and is_refusal(reply)):
            return first
        second = _answer(_reply((yield self.plain, [*messages, HumanMessage(AGAIN)])), read)
        usage = add_usage(first.usage, second.usage) if first.usage or second.usage else None
        return second._replace(usage=usage)


def _reply(output: Any) -> AIMessage | str | None:
    """The reply; None if it was truncated, so that it cannot be parsed."""
    if isinstance(output, Exception):
        if type(output).__name__ in _CUT_OFF:
            return None
        raise output
    if isinstance(output, dict) and set(output) == _INCLUDED_RAW:
        output = output["raw"]
    if not isinstance(output, AIMessage | str):
        raise TypeError(f"The judge's model: expected it to return a str or an AIMessage, got {type(output).__name__}.")
    return output


def _answer(reply: AIMessage | str | None, read: Read[T]) -> JudgeReply[T]:
    data = None if reply is None else parse_reply(reply)
    result = None if data is None else read(data)
    return JudgeReply(result, reply.usage_metadata if isinstance(reply, AIMessage) else None, reply_model(reply))
