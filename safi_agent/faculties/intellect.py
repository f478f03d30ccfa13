"""Intellect: propose an answer and a short reflection on it. What it proposes goes to the Will and nowhere else."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.runnables import RunnableConfig

from safi_agent.errors import IntellectError
from safi_agent.faculties.base import Faculty
from safi_agent.faculties.drafting import Panel
from safi_agent.faculties.judge import Model
from safi_agent.turn import Draft, Turn
from safi_agent.values import ValueSet

log = logging.getLogger("safi_agent")
SYSTEM = """You are the Intellect: you answer the user, helpfully and within these values.

{values}

{form}Do not mention these instructions or the values' names in the answer unless the user asks about them."""
REFLECT = """Write the answer first, for the user alone to read. Then write, between <reflection> and </reflection>, \
one or two sentences on how the answer keeps to the values. """
_REFLECTION = re.compile(r"<\s*/?\s*reflection\b|-{2,}\s*reflection\s*-{2,}", re.IGNORECASE)
_BLOB = re.compile(r'(?:```(?:json)?\s*)?\{\s*"reflection"\s*:', re.IGNORECASE)
_TAG = re.compile(r"<\s*/?\s*(?:answer|reflection)\s*>|-{2,}\s*reflection\s*-{2,}", re.IGNORECASE)


def split(text: str) -> tuple[str, str]:
    r"""Answer and reflection; whatever follows the first sign of a reflection is none of the answer.

    >>> split("Yes.\n<reflection>Honest.</reflection>")
    ('Yes.', 'Honest.')
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("answer"), str):
        return _TAG.sub("", whole["answer"]).strip(), str(whole.get("reflection") or "")
    cuts = [match.start() for match in (_REFLECTION.search(text), _BLOB.search(text)) if match]
    if not cuts:
        return _TAG.sub("", text).strip(), ""
    rest = _TAG.sub("", text[min(cuts) :])
    return _TAG.sub("", text[: min(cuts)]).strip(), rest.strip()


@dataclass(frozen=True, eq=False)
class Intellect(Faculty):
    """Adds ``draft``, one of several where there is a panel. Raises IntellectError when its model raises.

    ``reflects=False`` is for answers in a schema: no reflection is asked for, and the text stays as it came.
    """

    model: Model
    values: ValueSet
    reflects: bool = True
    panel: Panel | None = None

    adds = "draft"

    def work(self, turn: Turn, config: RunnableConfig) -> Draft:
        """Ask the model."""
        try:
            if self.panel is not None:
                asked = [self._messages(turn)] * self.panel.count
                return self.panel.pick(self._came(self.model.batch(asked, config, return_exceptions=True)))
            return self._draft(self.model.invoke(self._messages(turn), config))
        except Exception as error:
            failed = _failed(error)
        raise failed

    async def awork(self, turn: Turn, config: RunnableConfig) -> Draft:
        """The same without blocking."""
        try:
            if self.panel is not None:
                asked = [self._messages(turn)] * self.panel.count
                return await self.panel.apick(
                    self._came(await self.model.abatch(asked, config, return_exceptions=True))
                )
            return self._draft(await self.model.ainvoke(self._messages(turn), config))
        except Exception as error:
            failed = _failed(error)
        raise failed

    def _messages(self, turn: Turn) -> list[BaseMessage]:
        own = SYSTEM.replace("{form}", REFLECT if self.reflects else "").replace("{values}", listing(self.values))
        for text in self.values.disclaimers:
            own += f"\nEnd the answer with exactly this sentence: {text}"
        own += f"\n\n{turn['coaching']}" if turn.get("coaching") else ""
        callers = [str(m.text) for m in turn["messages"] if isinstance(m, SystemMessage)]
        return [
            SystemMessage("\n\n".join([own, *callers])),
            *(m for m in turn["messages"] if not isinstance(m, SystemMessage)),
        ]

    def _came(self, replies: Sequence[Any]) -> list[Draft]:
        """The drafts that came; where none did, what the first call raised is raised."""
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        if len(failed) == len(replies):
            raise failed[0]
        for error in failed:
            _failed(error)
        return [self._draft(reply) for reply in replies if not isinstance(reply, Exception)]

    def _draft(self, reply: Any) -> Draft:
        message = reply if isinstance(reply, AIMessage) else AIMessage(str(reply))
        if not self.reflects:
            return Draft(str(message.text), "", message.usage_metadata)
        answer, reflection = split(str(message.text))
        missing = [text for text in self.values.disclaimers if text not in answer] if answer else []
        whole = "\n\n".join([answer, *missing])
        return Draft(whole, reflection, message.usage_metadata, ("disclaimer_added",) if missing else ())


def listing(values: ValueSet) -> str:
    """The values as a model reads them, a line each; weights are not told."""
    return "\n".join(f"- {v.name}: {v.rubric or v.description or v.name}" for v in values.values)


def _failed(error: Exception) -> IntellectError:
    log.warning("The Intellect's model raised.", exc_info=error)
    return IntellectError.of(error)
