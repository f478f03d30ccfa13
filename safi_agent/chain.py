"""The chain: ``intellect | will | release`` before the answer leaves; conscience, spirit, memory, log after it."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    BaseCallbackHandler,
    CallbackManagerForChainRun,
)
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import override

from safi_agent.audit import Audits, Where, open_audits
from safi_agent.audit.plan import Plan
from safi_agent.doors import inner_config, shut
from safi_agent.errors import ClosedError, IntellectError, SafiError, ViolationError
from safi_agent.faculties import conscience, will
from safi_agent.faculties.base import arun, run
from safi_agent.faculties.conscience import Calls, Conscience, ScoreMode
from safi_agent.faculties.drafting import Panel
from safi_agent.faculties.intellect import Intellect
from safi_agent.faculties.judge import Judge
from safi_agent.faculties.spirit import Map, identity, linear
from safi_agent.faculties.will import Will
from safi_agent.hooks import Hook
from safi_agent.inputs import SafiInput, read_input
from safi_agent.log import log_path
from safi_agent.models import default_model, model_label, resolve
from safi_agent.record import Measure, now
from safi_agent.release import Release, check_same, message
from safi_agent.settings import check
from safi_agent.store import open_store
from safi_agent.turn import Turn
from safi_agent.values import ValueSet, load_values

log = logging.getLogger("safi_agent")


class SafiChain(RunnableSerializable[SafiInput, AIMessage]):
    """A governed chat model: answers what its Will approves, audits every answer afterwards. See create_safi_chain.

    The fields are its settings and never change; what changes is in the store.
    """

    # A store's URL may hold a password: errors do not quote what came.
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    model: Any
    values: ValueSet
    will_model: Any = None
    conscience_model: Any = None
    store: str | None = Field(default=None, repr=False)  # it may hold a password
    log: str | None = None
    log_max_bytes: int | None = None
    hooks: tuple[Any, ...] = ()
    beta: float = 0.9
    review_below: float = 6
    drift_above: float = 0.4
    phi: Map = identity
    sigma: Map = linear
    conscience_calls: Calls = "all"
    score_mode: ScoreMode = "discrete"
    will_sees_reflection: bool = True
    drafts: int = 1
    embeddings: Any = None
    drafts_alike: float | None = None
    min_agreement: float = 0.0
    raise_on_violation: bool = False
    audit_attempts: int = 3
    audit_backoff: float = 1.0
    audit_timeout: float = 120.0
    audit: Where = "here"
    tracers: tuple[Any, ...] = Field(default=(), repr=False)

    _auditor: Audits = PrivateAttr()
    _release: Release = PrivateAttr()
    _gate: Will = PrivateAttr()
    _steps: Runnable[Turn, Turn] = PrivateAttr()
    _closed: list[bool] = PrivateAttr(default_factory=list)

    @override
    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        check(self)
        panel = Panel.of(self.drafts, self.embeddings, self.drafts_alike)
        intellect = resolve(self.model, "model")
        # A name is resolved anew for the judges, which are asked at temperature 0.
        ruling = resolve(self.will_model or self.model, "will_model", judge=True)
        judging = resolve(self.conscience_model or self.model, "conscience_model", judge=True)
        names = {"intellect": intellect, "will": ruling, "conscience": judging}
        self._auditor = open_audits(self._plan(judging), open_store(self.store), self.audit)
        self._release = Release(self._auditor, {faculty: model_label(model) for faculty, model in names.items()})
        judge = Judge.of(ruling, will.schema(self.values), retry=False)
        self._gate = Will(judge, self.values, self.will_sees_reflection, min_agreement=self.min_agreement)
        self._steps = Intellect(intellect, self.values, panel=panel) | self._gate | self._release

    def _plan(self, model: Runnable[Any, Any]) -> Plan:
        judge = Judge.of(model, conscience.SCHEMA, retry=True)
        measure = Measure(self.beta, self.review_below, self.drift_above, self.phi, self.sigma)
        return Plan(
            values=self.values,
            conscience=lambda values: Conscience(judge, values, self.conscience_calls, self.score_mode),
            measure=measure,
            log=log_path(self.log),
            log_max_bytes=self.log_max_bytes,
            hooks=self.hooks,
            attempts=self.audit_attempts,
            backoff=self.audit_backoff,
            timeout=self.audit_timeout,
            tracers=self.tracers,
        )

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
        return self.give(self.govern(self._steps, turn, config)["answer"] if known is None else known)

    async def _aanswer(
        self, given: SafiInput, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> AIMessage:
        turn, known = await self._aopen(given, config)
        return self.give((await self.agovern(self._steps, turn, config))["answer"] if known is None else known)

    def govern(self, steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
        """Take a turn through faculties with all doors shut, and let no error out that says what happened inside.

        Raises:
            SafiError: anything went wrong.
        """
        failed: SafiError
        try:
            with shut(inner := inner_config(config, self.tracers, turn["id"])):
                return run(steps, turn, inner)
        except Exception as error:
            failed = self._clean(error, turn)
        raise failed

    async def agovern(self, steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
        """The same without blocking."""
        failed: SafiError
        try:
            with shut(inner := inner_config(config, self.tracers, turn["id"])):
                return await arun(steps, turn, inner)
        except Exception as error:
            failed = await asyncio.to_thread(self._clean, error, turn)
        raise failed

    async def _aopen(self, given: SafiInput, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """The same, on a thread where the store may have to be asked."""
        asked = config.get("configurable") or {}
        key = _name(asked, "safi_key", self.values.name)
        if "safi_turn_id" in asked or self._auditor.store.known_note(key) is None:
            return await asyncio.to_thread(self._open, given, config)
        return self._open(given, config)

    def _open(self, given: SafiInput, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """A new turn, and its answer where its id was answered before."""
        turn = self.begin(given, config)
        before = self._auditor.store.find(turn["id"]) if "safi_turn_id" in (config.get("configurable") or {}) else None
        if before is None:
            return turn, None
        number, kept = before
        check_same(kept, turn)
        return turn, message(kept, number)

    def begin(self, given: SafiInput, config: RunnableConfig) -> Turn:
        """A new turn, of the id and the memory key that the config names.

        Raises:
            ClosedError: the chain was closed.
            TypeError, ValueError: the input is of another form, has no text, or a name cannot be one.
        """
        if self._closed:
            raise ClosedError("The chain is closed.")
        request = read_input(given)
        asked = config.get("configurable") or {}
        key = _name(asked, "safi_key", self.values.name)
        return {
            "id": _name(asked, "safi_turn_id", "") or str(uuid4()),
            "key": key,
            "time": now(),
            "prompt": request.prompt,
            "messages": request.messages,
            "context": request.context,
            "metadata": request.metadata,
            "coaching": self._auditor.store.note(key),
        }

    def give(self, answer: AIMessage) -> AIMessage:
        """The answer, or the error that was asked for in place of a refusal."""
        told = answer.response_metadata["safi"]
        if self.raise_on_violation and told["willDecision"] == "violation":
            raise ViolationError(str(answer.text), told)
        return answer

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

    def _clean(self, error: Exception, turn: Turn) -> SafiError:
        if isinstance(error, IntellectError):
            with contextlib.suppress(SafiError):
                self._release.write({**turn, "id": str(uuid4())}, None, audit=False)
        return self.clean(error)

    def clean(self, error: Exception) -> SafiError:
        """What the caller may see of an error: none of the texts and none of the traces of what happened inside."""
        if not isinstance(error, SafiError):
            log.error("A turn failed.", exc_info=error)
            return SafiError(f"The turn failed ({type(error).__name__}). Details are in the logger 'safi_agent'.")
        return error.with_traceback(None)

    def drain(self, timeout: float | None = 30) -> int:
        """Wait until the audits of this process are done; how many were finished since the last call.

        After ``timeout`` seconds (None: never) it returns all the same; what is left stays in the store.
        """
        return self._auditor.drain(timeout)

    async def adrain(self, timeout: float | None = 30) -> int:
        """The same without blocking."""
        return await asyncio.to_thread(self.drain, timeout)

    def close(self, timeout: float | None = 30) -> int:
        """Take no more turns, then drain."""
        self._closed[:] = [True]
        finished = self.drain(timeout)
        self._auditor.stop(0)
        return finished

    async def aclose(self, timeout: float | None = 30) -> int:
        """The same without blocking."""
        return await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name != "name"}

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self._settings())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A chain of its own with these settings, changed as ``update`` says; models and the store are shared."""
        return type(self)(**{**self._settings(), **(update or {})})


def _rebuild(kind: type[SafiChain], settings: Mapping[str, Any]) -> SafiChain:
    return kind(**settings)


def _name(asked: Mapping[str, Any], argument: str, default: str) -> str:
    name = asked.get(argument, default)
    if not isinstance(name, str) or len(name) > 200 or (not name and argument in asked) or not name.isprintable():
        raise ValueError(f"{argument}: expected 1 to 200 printable characters, got {name!r}.")
    return name


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
        ValueError: an argument has a value that is not allowed; the text names it.
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
        hooks=tuple(hooks),
        beta=beta,
        tracers=tuple(tracers),
        **settings,
    )
