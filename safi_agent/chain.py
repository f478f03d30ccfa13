"""The chain: ``intellect | will | release`` before the answer leaves; conscience, spirit, memory, log after it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, BaseCallbackHandler, CallbackManagerForChainRun
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import PrivateAttr
from typing_extensions import override

from safi_agent.audit import AuditBranch, open_audit_branch
from safi_agent.backpressure import Backpressure
from safi_agent.error_boundary import acontain_errors, contain_errors, input_errors
from safi_agent.errors import ClosedError, IntellectError, ViolationError
from safi_agent.faculties import conscience, will
from safi_agent.faculties.base import arun, run
from safi_agent.faculties.intellect import Intellect
from safi_agent.faculties.judge import Judge
from safi_agent.faculties.self_consistency import DraftSelector
from safi_agent.faculties.structured_output import is_unresolved
from safi_agent.faculties.will import Will
from safi_agent.hooks import Hook
from safi_agent.idempotency import TurnName, find_earlier_answer, is_named, memory_key, new_turn
from safi_agent.inputs import SafiInput
from safi_agent.isolation import isolated
from safi_agent.lifecycle import Drained, Lifecycle
from safi_agent.log import log_path
from safi_agent.models import default_model, model_label, resolve, token_counts
from safi_agent.release import Release
from safi_agent.settings import Settings
from safi_agent.store import open_store
from safi_agent.store.backlog import Backlog, read_backlog
from safi_agent.store.database_errors import opening
from safi_agent.store.reaudit import add_reaudit, failed_audits
from safi_agent.store.secrets import read_secret
from safi_agent.store.timeout_budget import shared_timeout_budget
from safi_agent.turn import Turn
from safi_agent.values import ValueSet, load_values


class SafiChain(Lifecycle, Settings):
    """A governed chat model: answers what its Will approves, audits every answer afterwards. See create_safi_chain."""

    _auditor: AuditBranch = PrivateAttr()
    _release: Release = PrivateAttr()
    _gate: Will = PrivateAttr()
    _backpressure: Backpressure = PrivateAttr()
    _steps: Runnable[Turn, Turn] = PrivateAttr()
    _closed: list[bool] = PrivateAttr(default_factory=list)

    @override
    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        panel = DraftSelector.of(self.drafts, self.embeddings, self.drafts_alike)
        intellect = resolve(self.model, "model")
        # A name is resolved anew for the judges, which are asked at temperature 0.
        ruling = resolve(self.will_model or self.model, "will_model", judge=True)
        judging = resolve(self.conscience_model or self.model, "conscience_model", judge=True)
        if self.audit == "here" and is_unresolved(judging):
            raise ValueError(
                "conscience_model: expected a model that can be asked without the config of a run, since audits are "
                "made after it; got one that only a config names. Give conscience_model, or a default model."
            )
        models = {"intellect": intellect, "will": ruling, "conscience": judging}
        names = {faculty: model_label(model) for faculty, model in models.items()}
        plan = self.plan(Judge.of(judging, conscience.SCHEMA, retry=True), names["conscience"])
        self._auditor = opening(open_audit_branch)(plan, open_store(self.store), self.audit)
        self._release = Release(self._auditor, names)
        self._backpressure = Backpressure(self._auditor.store, self.values.name, self.max_pending, self.when_full)
        judge = Judge.of(ruling, will.schema(self.values), retry=False)
        self._gate = Will(
            judge,
            self.values,
            self.will_sees_reflection,
            min_agreement=self.min_agreement,
            refuse_truncated=self.refuse_truncated,
        )
        self._steps = Intellect(intellect, self.values, panel=panel) | self._gate | self._release

    @override
    def invoke(self, input: SafiInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answer, or refuse.

        Raises:
            TypeError, ValueError: the input is of another form, or has no text.
            IntellectError: the model failed before there was a draft.
            OutboxError: the turn could not be made durable.
            BacklogError: ``max_pending`` audits are open, and ``when_full`` is not "warn".
            ViolationError: the Will refused, where ``raise_on_violation`` was asked for.
            ClosedError: the chain was closed.
        """
        return self._call_with_config(self._answer, input, config)

    @override
    async def ainvoke(self, input: SafiInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """The same without blocking."""
        return await self._acall_with_config(self._aanswer, input, config)

    def _answer(self, given: SafiInput, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> AIMessage:
        return contain_errors(partial(self._governed, given, config))

    async def _aanswer(
        self, given: SafiInput, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> AIMessage:
        return await acontain_errors(partial(self._agoverned, given, config))

    def _governed(self, given: SafiInput, config: RunnableConfig) -> AIMessage:
        with shared_timeout_budget():
            with input_errors():
                turn, known = self._open(given, config)
            if known is not None:
                return self.give(known)
            with self._backpressure.admit():
                return self.give(self.run_steps(self._steps, turn, config)["answer"])

    async def _agoverned(self, given: SafiInput, config: RunnableConfig) -> AIMessage:
        with shared_timeout_budget():
            with input_errors():
                turn, known = await self._aopen(given, config)
            if known is not None:
                return self.give(known)
            async with self._backpressure.admit():
                return self.give((await self.arun_steps(self._steps, turn, config))["answer"])

    def _open(self, given: SafiInput, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """A new turn, and its answer where it was answered before."""
        return self.known(self.begin(given, config))

    async def _aopen(self, given: SafiInput, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """The same, on a thread where the store has to be asked."""
        note = self._auditor.store.cached_feedback_note(memory_key(config, self.values.name))
        if is_named(config) or note is None:
            return await asyncio.to_thread(self._open, given, config)
        return self.begin(given, config, note=note), None

    def run_steps(self, steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
        """Run a turn through faculties, hidden from the caller's callbacks and streams.

        Errors are raised unchanged, with all that they refer to: call it within ``error_boundary`` only.
        """
        with isolated(config, self.tracers, turn) as inner:
            try:
                return run(steps, turn, inner)
            except IntellectError:
                self._release.record_failure(turn)
                raise

    async def arun_steps(self, steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
        """Asynchronous version of ``run_steps``."""
        with isolated(config, self.tracers, turn) as inner:
            try:
                return await arun(steps, turn, inner)
            except IntellectError:
                await asyncio.to_thread(self._release.record_failure, turn)
                raise

    def begin(
        self, given: SafiInput, config: RunnableConfig, *, note: str | None = None, name: TurnName | None = None
    ) -> Turn:
        """A new turn, of the id and the memory key that the config names.

        The store is asked for the coaching ``note`` where none is given; ``name`` is used in place of the config's.

        Raises:
            ClosedError: the chain was closed.
            TypeError, ValueError: the input is of another form, has no text, or a name cannot be one.
            OutboxError: the store failed.
        """
        if self._closed:
            raise ClosedError("The chain is closed.")
        if note is None:
            note = self._auditor.store.feedback_note(memory_key(config, self.values.name))
        return new_turn(given, config, self.values.name, note, name)

    def known(self, turn: Turn) -> tuple[Turn, AIMessage | None]:
        """A turn under the id that is its own, and its answer where it was answered before.

        Raises:
            OutboxError: the store failed.
            ValueError: its id belongs to another turn, and it has no other.
        """
        return find_earlier_answer(turn, self._auditor.store)

    def give(self, answer: AIMessage) -> AIMessage:
        """The answer, or the error that was asked for in place of a refusal."""
        answer.usage_metadata = token_counts(answer.usage_metadata)
        told = answer.response_metadata["safi"]
        if self.raise_on_violation and told["willDecision"] == "violation":
            raise ViolationError(str(answer.text), told)
        return answer

    def backlog(self) -> Backlog:
        """The number of open audits of this value set on this store, from all processes, and the age of the oldest.

        Raises:
            OutboxError: the store failed.
        """
        return read_backlog(self._auditor.store.database, self.values.name)

    def reaudit(self, turn_ids: Iterable[str] | None = None) -> int:
        """Audit turns again whose audit failed for good; how many. ``drain`` waits for them.

        Each is a new turn at the end of its memory key, with a line of its own in the log that has the flag "reaudited"
        and names the first by ``reauditOf``; μ moves there. A turn that was audited again with success, or is being
        audited again, is left alone.

        Args:
            turn_ids: ids as in ``response_metadata["safi"]["turnId"]``. Default: all failed ones of this value set.

        Raises:
            TypeError: ``turn_ids`` is not several.
            ValueError: the store has no turn of such an id.
            ClosedError: the chain was closed.
        """
        if self._closed:
            raise ClosedError("The chain is closed.")
        asked = None if turn_ids is None else _several("turn_ids", turn_ids)
        store, count = self._auditor.store, 0
        for turn_id in failed_audits(store, self.values.name, asked):
            if (job := add_reaudit(store, self.values.name, turn_id)) is not None:
                self._auditor.submit(job)
                count += 1
        return count

    @property
    def backpressure(self) -> Backpressure:
        """What bounds the open audits."""
        return self._backpressure

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
        return self._auditor.store.find_turn(turn_id)

    def secret(self, name: str) -> str:
        """A key that this store keeps: the same in every process that uses it."""
        return read_secret(self._auditor.store, name)

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
        model: a chat model, a name for ``init_chat_model``, or "offline" for the rehearsal model, which labels every
            answer and record. Default: "openai:gpt-4o", which needs OPENAI_API_KEY.
        values: a shipped set ("unesco", "civic", "professional"), a YAML file, a mapping or a ValueSet.
        will_model: who judges drafts; default ``model``.
        conscience_model: who audits answers; default ``model``.
        store: a URL of SQLite or PostgreSQL ("postgresql+psycopg://…", for several processes on several machines),
            or None to keep memory and outbox in memory, where they end with the process.
        log: the file for one JSON line a turn, or None.
        hooks: called with an Alert, sync or async, when a score is low, a drift is high, or an audit failed.
        beta: how much of μ stays at each audit, in [0, 1).
        tracers: callback handlers that get what happens inside too, drafts included. A caller's handlers get the
            input and the answer, whatever their class.
        settings: the other fields of SafiChain. ``drafts`` above 1 has the Intellect write so many, side by side; the
            one that most others agree with goes on (docs/safi.md). ``refuse_truncated=True`` refuses a draft that its
            model cut off at a limit of length, which is only flagged otherwise (``draft_truncated``).

    Raises:
        ImportError: ``drafts`` is above 1 and sal_lightning is not installed.
        TypeError: an argument has another type.
        ValueError: an argument has a value that is not allowed, there is no model, or the store cannot be opened; the
            text says which.
    """
    if unknown := sorted(set(settings) - set(SafiChain.model_fields)):
        raise TypeError(f"create_safi_chain: expected settings among SafiChain's fields, got {unknown}.")
    return SafiChain(
        values=load_values(values),
        model=default_model() if model is None else model,
        will_model=will_model,
        conscience_model=conscience_model,
        store=store,
        log=None if log is None else log_path(log),
        hooks=_several("hooks", hooks),
        beta=beta,
        tracers=_several("tracers", tracers),
        **settings,
    )
