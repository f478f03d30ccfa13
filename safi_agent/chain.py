"""The chain: ``intellect | will | release`` before the answer leaves; conscience, spirit, memory, log after it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, BaseCallbackHandler, CallbackManagerForChainRun
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import PrivateAttr
from typing_extensions import override

from safi_agent.audit import Audits, open_audits
from safi_agent.drained import Drained
from safi_agent.errors import ClosedError, ViolationError
from safi_agent.faculties import conscience, will
from safi_agent.faculties.drafting import Panel
from safi_agent.faculties.intellect import Intellect
from safi_agent.faculties.judge import Judge
from safi_agent.faculties.will import Will
from safi_agent.hooks import Hook
from safi_agent.inputs import SafiInput
from safi_agent.inside import Inside
from safi_agent.lifetime import Lifetime
from safi_agent.log import log_path
from safi_agent.models import default_model, model_label, resolve
from safi_agent.opening import answered_before, is_named, key_of, new_turn
from safi_agent.release import Release
from safi_agent.settings import Settings
from safi_agent.store import open_store
from safi_agent.store.failing import opening
from safi_agent.turn import Turn
from safi_agent.values import ValueSet, load_values


class SafiChain(Lifetime, Settings):
    """A governed chat model: answers what its Will approves, audits every answer afterwards. See create_safi_chain."""

    _auditor: Audits = PrivateAttr()
    _release: Release = PrivateAttr()
    _gate: Will = PrivateAttr()
    _inside: Inside = PrivateAttr()
    _steps: Runnable[Turn, Turn] = PrivateAttr()
    _closed: list[bool] = PrivateAttr(default_factory=list)

    @override
    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        panel = Panel.of(self.drafts, self.embeddings, self.drafts_alike)
        intellect = resolve(self.model, "model")
        # A name is resolved anew for the judges, which are asked at temperature 0.
        ruling = resolve(self.will_model or self.model, "will_model", judge=True)
        judging = resolve(self.conscience_model or self.model, "conscience_model", judge=True)
        names = {"intellect": intellect, "will": ruling, "conscience": judging}
        plan = self.plan(Judge.of(judging, conscience.SCHEMA, retry=True))
        self._auditor = opening(open_audits)(plan, open_store(self.store), self.audit)
        self._release = Release(self._auditor, {faculty: model_label(model) for faculty, model in names.items()})
        self._inside = Inside(self.tracers, self._release)
        judge = Judge.of(ruling, will.schema(self.values), retry=False)
        self._gate = Will(judge, self.values, self.will_sees_reflection, min_agreement=self.min_agreement)
        self._steps = Intellect(intellect, self.values, panel=panel) | self._gate | self._release

    @override
    def invoke(self, input: SafiInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answer, or refuse.

        Raises:
            TypeError, ValueError: the input is of another form, or has no text.
            IntellectError: the model failed before there was a draft.
            OutboxError: the turn could not be made durable.
            ViolationError: the Will refused, where ``raise_on_violation`` was asked for.
            ClosedError: the chain was closed.
        """
        return self._call_with_config(self._answer, input, config)

    @override
    async def ainvoke(self, input: SafiInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """The same without blocking."""
        return await self._acall_with_config(self._aanswer, input, config)

    def _answer(self, given: SafiInput, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> AIMessage:
        turn, known = self._open(given, config)
        return self.give(self._inside.govern(self._steps, turn, config)["answer"] if known is None else known)

    async def _aanswer(
        self, given: SafiInput, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> AIMessage:
        turn, known = await self._aopen(given, config)
        return self.give((await self._inside.agovern(self._steps, turn, config))["answer"] if known is None else known)

    def _open(self, given: SafiInput, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """A new turn, and its answer where its id was answered before."""
        turn = self.begin(given, config)
        return turn, answered_before(turn, config, self._auditor.store)

    async def _aopen(self, given: SafiInput, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """The same, on a thread where the store may have to be asked."""
        key = key_of(config, self.values.name)
        if is_named(config) or self._auditor.store.known_note(key) is None:
            return await asyncio.to_thread(self._open, given, config)
        return self._open(given, config)

    def begin(self, given: SafiInput, config: RunnableConfig) -> Turn:
        """A new turn, of the id and the memory key that the config names.

        Raises:
            ClosedError: the chain was closed.
            TypeError, ValueError: the input is of another form, has no text, or a name cannot be one.
        """
        if self._closed:
            raise ClosedError("The chain is closed.")
        return new_turn(given, config, self._auditor.store, self.values.name)

    def give(self, answer: AIMessage) -> AIMessage:
        """The answer, or the error that was asked for in place of a refusal."""
        told = answer.response_metadata["safi"]
        if self.raise_on_violation and told["willDecision"] == "violation":
            raise ViolationError(str(answer.text), told)
        return answer

    @property
    def inside(self) -> Inside:
        """Where turns go through faculties."""
        return self._inside

    @property
    def gate(self) -> Will:
        """The Will: what it has not approved goes no further."""
        return self._gate

    @property
    def release(self) -> Release:
        """The only way out: it makes a turn durable."""
        return self._release

    def answered(self, turn_id: str) -> tuple[int, Mapping[str, Any]] | None:
        """Number and body of the turn that was released under this id."""
        return self._auditor.store.find(turn_id)

    @override
    def drain(self, timeout: float | None = 30) -> Drained:
        return self._auditor.drain(timeout)

    @override
    def close(self, timeout: float | None = 30) -> Drained:
        self._closed[:] = [True]
        finished = self.drain(timeout)
        self._auditor.stop(0)
        return finished


def _several(argument: str, given: Any) -> tuple[Any, ...]:
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise TypeError(f"{argument}: expected several in a list, got {given!r}.")
    return tuple(given)


def create_safi_chain(
    model: Any = None,
    values: str | Path | Mapping[str, Any] | ValueSet = "unesco",
    *,
    will_model: Any = None,
    conscience_model: Any = None,
    store: str | None = "sqlite:///safi.db",
    log: str | Path | None = "saf-spirit-log.json",
    hooks: Sequence[Hook] = (),
    beta: float = 0.9,
    tracers: Sequence[BaseCallbackHandler] = (),
    **settings: Any,
) -> SafiChain:
    """A runnable that answers only what its Will lets through, and audits every answer value by value.

    Args:
        model: a chat model, a name for ``init_chat_model``, or "offline" for the rehearsal model. Default:
            "openai:gpt-4o" where OPENAI_API_KEY is set, else "offline", which labels every answer and record.
        values: a shipped set ("unesco", "civic", "professional"), a YAML file, a mapping or a ValueSet.
        will_model: who judges drafts; default ``model``.
        conscience_model: who audits answers; default ``model``.
        store: a URL of SQLite or PostgreSQL ("postgresql+psycopg://…", for several processes on several machines),
            or None to keep memory and outbox in memory, where they end with the process.
        log: the file for one JSON line a turn, or None.
        hooks: called with an Alert, sync or async, when a score is low, a drift is high, or an audit failed.
        beta: how much of μ stays at each audit, in [0, 1).
        tracers: callback handlers that may see inside, drafts included.
        settings: the other fields of SafiChain. ``drafts`` above 1 has the Intellect write so many, side by side; the
            one that most others agree with goes on (docs/safi.md).

    Raises:
        ImportError: ``drafts`` is above 1 and sal_lightning is not installed.
        TypeError: an argument has another type.
        ValueError: an argument has a value that is not allowed, or the store cannot be opened; the text names it.
    """
    if unknown := sorted(set(settings) - set(SafiChain.model_fields)):
        raise TypeError(f"create_safi_chain: expected settings among SafiChain's fields, got {unknown}.")
    return SafiChain(
        model=default_model() if model is None else model,
        values=load_values(values),
        will_model=will_model,
        conscience_model=conscience_model,
        store=store,
        log=None if log is None else log_path(log),
        hooks=_several("hooks", hooks),
        beta=beta,
        tracers=_several("tracers", tracers),
        **settings,
    )
