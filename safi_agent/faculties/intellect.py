"""Intellect: draft an answer and a short reflection on it. The draft is passed to the Will only."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.runnables import RunnableConfig

from safi_agent.agents.tools import iter_texts
from safi_agent.errors import IntellectError
from safi_agent.faculties.base import Faculty
from safi_agent.faculties.reflection import split
from safi_agent.faculties.self_consistency import DraftSelector
from safi_agent.faculties.structured_output import Model
from safi_agent.faculties.template import render
from safi_agent.models import reply_model
from safi_agent.parsing import is_truncated, strip_reasoning
from safi_agent.tool_calls import ReadCalls, call_text, read_calls
from safi_agent.turn import ENDLESS, TRUNCATED, Draft, Turn
from safi_agent.values import ValueSet

log = logging.getLogger("safi_agent")
SYSTEM = """You are the Intellect: you answer the user, helpfully and within these values.

{values}

{reflection}Do not mention these instructions or the values' names in the answer unless the user asks about them."""
PLACEHOLDERS = ("values", "reflection")
REFLECT = """Write the answer first, for the user alone to read. Then write, on a new line, between <reflection> and \
</reflection>, one or two sentences on how the answer keeps to the values. """


@dataclass(frozen=True, eq=False)
class Intellect(Faculty):
    """Adds ``draft``, selected from several if a selector is set. Raises IntellectError if its model raises.

    ``reflects=False`` is for structured output: no reflection is requested, and the text is unchanged. ``tools`` are
    the names of tools that are bound to the model; None if something else handles its calls.
    """

    model: Model
    values: ValueSet
    reflects: bool = True
    selector: DraftSelector | None = None
    system_prompt: str = SYSTEM
    tools: frozenset[str] | None = None

    output_key = "draft"
    span_name = "Intellect"

    def compute(self, turn: Turn, config: RunnableConfig) -> Draft:
        """Call the model."""
        try:
            if self.selector is not None:
                requests = [self._messages(turn)] * self.selector.count
                return self.selector.select(self._drafts(self.model.batch(requests, config, return_exceptions=True)))
            return self._draft(self.model.invoke(self._messages(turn), config))
        except Exception as error:
            failed = _failed(error)
        raise failed

    async def acompute(self, turn: Turn, config: RunnableConfig) -> Draft:
        """Asynchronous version."""
        try:
            if self.selector is not None:
                requests = [self._messages(turn)] * self.selector.count
                return await self.selector.aselect(
                    self._drafts(await self.model.abatch(requests, config, return_exceptions=True))
                )
            return self._draft(await self.model.ainvoke(self._messages(turn), config))
        except Exception as error:
            failed = _failed(error)
        raise failed

    def _messages(self, turn: Turn) -> list[BaseMessage]:
        reflection = REFLECT if self.reflects else ""
        system = render(self.system_prompt, {"values": values_prompt(self.values), "reflection": reflection})
        for text in self.values.disclaimers:
            system += f"\nEnd the answer with exactly this sentence: {text}"
        system += f"\n\n{turn['feedback']}" if turn.get("feedback") else ""
        leading = list(takewhile(lambda message: isinstance(message, SystemMessage), turn["messages"]))
        return [_joined(system, leading), *turn["messages"][len(leading) :]]

    def _drafts(self, replies: Sequence[Any]) -> list[Draft]:
        """The drafts of the successful calls; raises the first error if there are none."""
        drafts: list[Draft] = []
        failed: list[Exception] = []
        for reply in replies:
            try:
                drafts.append(self._draft(reply))
            except Exception as error:
                failed.append(error)
        if not drafts:
            raise failed[0]
        for fault in failed:
            _failed(fault)
        return drafts

    def _draft(self, reply: Any) -> Draft:
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply, AIMessage | str):
            raise TypeError(
                f"The Intellect's model: expected it to return a str or an AIMessage, got {type(reply).__name__}."
            )
        message = reply if isinstance(reply, AIMessage) else AIMessage(reply)
        bare = without_reasoning(str(message.text))
        flags = (*bare.flags, TRUNCATED) if is_truncated(message) else bare.flags
        draft = bare._replace(usage=message.usage_metadata, flags=flags, model=reply_model(message))
        if not self.reflects:
            return draft
        answer, reflection = split(draft.answer, broken_off=TRUNCATED in flags)
        if self.tools is not None and (message.tool_calls or message.invalid_tool_calls):
            return _with_calls(draft, answer, reflection, read_calls(message, self.tools))
        missing = [text for text in self.values.disclaimers if text not in answer] if answer else []
        return draft._replace(
            answer="\n\n".join([answer, *missing]),
            reflection=reflection,
            flags=(*flags, "disclaimer_added") if missing else flags,
        )


def _with_calls(draft: Draft, said: str, reflection: str, read: ReadCalls) -> Draft:
    """A draft of calls and the text beside them, which is no answer and needs no disclaimer."""
    return draft._replace(
        answer="\n\n".join(filter(None, [said, *map(call_text, read.calls)])),
        reflection=reflection,
        flags=(*draft.flags, *read.faults),
        texts=tuple(text for call in read.calls for text in (call["name"], *iter_texts(call["args"]))),
        calls=read.calls,
        said=said,
    )


def _joined(own: str, callers: Sequence[BaseMessage]) -> SystemMessage:
    """Join our instructions and the caller's into one system message; content blocks are unchanged."""
    contents = [message.content for message in callers]
    extra = {name: item for message in callers for name, item in message.additional_kwargs.items()}
    if all(isinstance(content, str) for content in contents):
        return SystemMessage("\n\n".join([own, *map(str, contents)]), additional_kwargs=extra)
    parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
    blocks: list[str | dict[Any, Any]] = [
        {"type": "text", "text": part} if isinstance(part, str) else part for part in [own, *parts]
    ]
    return SystemMessage(blocks, additional_kwargs=extra)


def without_reasoning(text: str) -> Draft:
    """A draft of this text without its leading reasoning; flagged if the reasoning does not end."""
    answer = strip_reasoning(text)
    return Draft("", flags=(ENDLESS,)) if answer is None else Draft(answer)


def values_prompt(values: ValueSet) -> str:
    """The values as text for a model, one line each, without their weights."""
    return "\n".join(f"- {v.name}: {v.rubric or v.description or v.name}" for v in values.values)


def _failed(error: Exception) -> IntellectError:
    log.warning("The Intellect's model raised.", exc_info=error)
    return IntellectError.of(error)
