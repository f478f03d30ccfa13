"""SafiChain: ``intellect | will | release`` before the answer; conscience, spirit, memory and log after it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, BaseCallbackHandler, CallbackManagerForChainRun
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import PrivateAttr
from sqlalchemy import make_url
from typing_extensions import override

from safi_agent import defaults
from safi_agent.audit import AuditBranch, AuditMode, open_audit_branch
from safi_agent.audit.finished import Audit, AuditStream, await_audit, successful, wait_for_audit
from safi_agent.backpressure import Backpressure, WhenFull
from safi_agent.erasure import Erased, erase
from safi_agent.error_boundary import acontain_errors, contain_errors, input_errors
from safi_agent.errors import ClosedError, IntellectError, JudgeUnavailableError, ViolationError
from safi_agent.faculties import conscience, will
from safi_agent.faculties.base import arun, run
from safi_agent.faculties.conscience import Calls, ScoreMode
from safi_agent.faculties.intellect import Intellect
from safi_agent.faculties.judge import Judge
from safi_agent.faculties.local_conscience import load_local, local_name
from safi_agent.faculties.self_consistency import DraftSelector
from safi_agent.faculties.spirit import Map, identity, linear
from safi_agent.faculties.structured_output import is_unresolved
from safi_agent.faculties.will import JUDGE_FAILED, Will
from safi_agent.hooks import Hook
from safi_agent.idempotency import TurnName, find_earlier_answer, has_turn_id, memory_key, new_turn
from safi_agent.inputs import SafiInput
from safi_agent.isolation import isolated
from safi_agent.lifecycle import DrainResult, Lifecycle
from safi_agent.log import log_path
from safi_agent.models import Model, default_model, is_local, model_label, resolve, token_counts
from safi_agent.prompts import DEFAULT_PROMPTS, Prompts, load_prompts
from safi_agent.redaction import Redact
from safi_agent.release import RefusedRecord, Release, WillMode, is_refusal, warn_of_shadow_mode
from safi_agent.sampling import EVERY_ANSWER, Sampler, Sampling
from safi_agent.settings import Settings
from safi_agent.store import open_store
from safi_agent.store.backlog import Backlog, read_backlog
from safi_agent.store.database_errors import opening
from safi_agent.store.reaudit import add_reaudit, failed_audits
from safi_agent.store.secrets import read_secret
from safi_agent.store.timeout_budget import shared_timeout_budget
from safi_agent.telemetry import backlog
from safi_agent.telemetry.spans import TraceScope, call_scope, record_answer, turn_span
from safi_agent.tool_calls import bound_tools, without_tools
from safi_agent.turn import Turn
from safi_agent.values import ValueSet, load_values


class SafiChain(Lifecycle, Settings):
    """A governed chat model: answers what its Will approves, audits every answer afterwards. See create_safi_chain."""

    _auditor: AuditBranch = PrivateAttr()
    _release: Release = PrivateAttr()
    _will: Will = PrivateAttr()
    _backpressure: Backpressure = PrivateAttr()
    _tools: frozenset[str] = PrivateAttr()
    _steps: Runnable[Turn, Turn] = PrivateAttr()
    _closed: list[bool] = PrivateAttr(default_factory=list)
    _drained: threading.Event = PrivateAttr(default_factory=threading.Event)  # set at the end of close()

    @override
    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        selector = DraftSelector.create(self.drafts, self.embeddings, self.drafts_alike)
        default = default_model() if self.model is None else self.model
        intellect = resolve(default, "model")
        # A name is resolved again for the judges, which use temperature 0.
        ruling = without_tools(resolve(self.will_model or default, "will_model", judge=True))
        local = load_local(self.conscience_model) if is_local(self.conscience_model) else None
        judging = self._resolve_conscience(default)
        if self.audit_mode == "in_process" and judging is not None and is_unresolved(judging):
            raise ValueError(
                "conscience_model: expected a model that can be called without the config of a run, since audits are "
                "made after it; got one that only a config names. Pass conscience_model, or a default model."
            )
        names = {faculty: model_label(model) for faculty, model in {"intellect": intellect, "will": ruling}.items()}
        names["conscience"] = model_label(judging) if local is None else local_name(local)
        judge_of = None if judging is None else Judge.of(judging, conscience.SCHEMA, retry=True)
        plan = self.plan(judge_of, names["conscience"], local)
        self._auditor = opening(open_audit_branch)(plan, open_store(self.store), self.audit_mode)
        backlog.monitor.add(self._auditor.store, self.values.name)
        draw_key = "" if self.sampling.audits_all else read_secret(self._auditor.store, "sampling")
        self._release = Release(
            self._auditor,
            names,
            self.redact,
            self.refused,
            self.outage_message,
            self.will_mode,
            Sampler(self.sampling, draw_key),
        )
        if self.will_mode == "shadow":
            warn_of_shadow_mode(self.values.name)
        self._backpressure = Backpressure(self._auditor.store, self.values.name, self.max_pending, self.when_full)
        judge = Judge.of(ruling, will.schema(self.values), retry=False)
        self._will = Will(
            judge,
            self.values,
            self.will_sees_reflection,
            min_agreement=self.min_agreement,
            refuse_truncated=self.refuse_truncated,
            system_prompt=self.prompts.will,
            call_prompt=self.prompts.tool_call,
        )
        self._tools = bound_tools(intellect)
        drafting = Intellect(
            intellect, self.values, selector=selector, system_prompt=self.prompts.intellect, tools=self._tools
        )
        self._steps = drafting | self._will | self._release

    def _resolve_conscience(self, default: Model) -> Runnable[Any, Any] | None:
        """The language model of the Conscience; None if a local judge has nobody to ask."""
        if is_local(self.conscience_model):
            given = self.escalation_model
            return None if given is None else without_tools(resolve(given, "escalation_model", judge=True))
        return without_tools(resolve(self.conscience_model or default, "conscience_model", judge=True))

    @override
    def __repr__(self) -> str:
        store = "None" if self.store is None else repr(make_url(self.store).render_as_string())  # without a password
        model = defaults.MODEL if self.model is None else self.model
        shadow = ", will_mode='shadow'" if self.will_mode == "shadow" else ""
        label = model if isinstance(model, str) else model_label(model)
        return f"SafiChain(model={label!r}, values={self.values.name!r}, store={store}, log={self.log!r}{shadow})"

    __str__ = __repr__

    @override
    def invoke(self, input: SafiInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answer, or refuse.

        Raises:
            TypeError, ValueError: the input is of another form, or has no text.
            IntellectError: the model failed before there was a draft.
            OutboxError: the turn could not be made durable.
            RedactionError: ``redact`` failed.
            BacklogError: ``max_pending`` audits are open, and ``when_full`` is not "warn".
            ViolationError: the Will refused, and ``raise_on_violation`` is set.
            JudgeUnavailableError: the same, where the Will's judge could not be asked.
            ClosedError: the chain was closed.
        """
        return self._call_with_config(self._answer, input, config)

    @override
    async def ainvoke(self, input: SafiInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Asynchronous version."""
        return await self._acall_with_config(self._aanswer, input, config)

    def _answer(self, input: SafiInput, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> AIMessage:
        return contain_errors(partial(self._governed, input, config))

    async def _aanswer(
        self, input: SafiInput, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> AIMessage:
        return await acontain_errors(partial(self._agoverned, input, config))

    def _governed(self, input: SafiInput, config: RunnableConfig) -> AIMessage:
        with shared_timeout_budget(), self.turn_span():
            with input_errors():
                turn, earlier = self._open(input, config)
            if earlier is not None:
                return self.deliver(earlier)
            with self._backpressure.admit():
                return self.deliver(self.run_steps(self._steps, turn, config)["answer"])

    async def _agoverned(self, input: SafiInput, config: RunnableConfig) -> AIMessage:
        with shared_timeout_budget(), self.turn_span():
            with input_errors():
                turn, earlier = await self._aopen(input, config)
            if earlier is not None:
                return self.deliver(earlier)
            async with self._backpressure.admit():
                return self.deliver((await self.arun_steps(self._steps, turn, config))["answer"])

    def _open(self, input: SafiInput, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """A new turn, and its answer if it was answered before."""
        return self.find_answer(self.begin_turn(input, config))

    async def _aopen(self, input: SafiInput, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """Asynchronous version; on a thread if the store has to be read."""
        note = self._auditor.store.cached_feedback_note(memory_key(config, self.values.name))
        if has_turn_id(config) or note is None:
            return await asyncio.to_thread(self._open, input, config)
        return self.begin_turn(input, config, note=note), None

    def turn_span(self, intellect: str | None = None) -> AbstractContextManager[None]:
        """The span of a turn; ``intellect`` replaces the name of the Intellect's model."""
        return turn_span(self._trace_scope(intellect))

    def call_scope(self) -> AbstractContextManager[None]:
        """The context in which faculties have spans outside of a turn."""
        return call_scope(self._trace_scope())

    def _trace_scope(self, intellect: str | None = None) -> TraceScope:
        models = self._release.models if intellect is None else {**self._release.models, "intellect": intellect}
        return TraceScope(self.values.name, models, self.trace_contents)

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

    def begin_turn(
        self, given: SafiInput, config: RunnableConfig, *, note: str | None = None, name: TurnName | None = None
    ) -> Turn:
        """Create a turn with the id and the memory key of the config.

        Without a feedback ``note`` it is read from the store; ``name`` overrides the config's.

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

    def find_answer(self, turn: Turn) -> tuple[Turn, AIMessage | None]:
        """The turn with its final id, and its answer if it was answered before.

        Raises:
            OutboxError: the store failed.
            ValueError: its id belongs to another turn, and it has no spare id.
        """
        return find_earlier_answer(turn, self._auditor.store)

    def deliver(self, answer: AIMessage) -> AIMessage:
        """Return the answer.

        Raises:
            ViolationError: it is a refusal, and ``raise_on_violation`` is set.
            JudgeUnavailableError: the same, because the Will's judge could not be asked.
        """
        answer = self._release.enforce(answer)
        answer.usage_metadata = token_counts(answer.usage_metadata)
        record_answer(answer)
        metadata = answer.response_metadata["safi"]
        if self.raise_on_violation and is_refusal(metadata):
            kind = JudgeUnavailableError if JUDGE_FAILED in metadata["flags"] else ViolationError
            raise kind(str(answer.text), metadata)
        return answer

    def backlog(self) -> Backlog:
        """The number of open audits of this value set on this store, from all processes, and the age of the oldest.

        Raises:
            OutboxError: the store failed.
        """
        return read_backlog(self._auditor.store.database, self.values.name)

    def audit(self, turn_id: str, timeout: float | None = 30) -> Audit:
        """Return the audit of a turn, and wait for it if it is not finished; of a repeated audit, the newest.

        A turn that was not audited, such as a refusal or one that is not in the sample, has the status "none". The
        audit is final once it is committed; its log line and its hooks may follow.

        Args:
            turn_id: the id in ``response_metadata["safi"]["turnId"]`` of the answer.
            timeout: maximum number of seconds to wait; 0 does not wait, None has no limit.

        Raises:
            ValueError: ``timeout`` is neither None nor a number of at least 0.
            UnknownTurnError: the store has no such turn.
            AuditTimeoutError: the audit was not finished in time.
            AuditFailedError: all attempts of the audit failed.
            RuntimeError: it would wait in a hook or a model during an audit.
            SafiError: the store could not be read.
        """
        return successful(wait_for_audit(self._auditor.store, turn_id, timeout))

    async def aaudit(self, turn_id: str, timeout: float | None = 30) -> Audit:
        """Asynchronous version of ``audit``."""
        return successful(await await_audit(self._auditor.store, turn_id, timeout))

    def audits(self, after: int | None = 0, timeout: float | None = None) -> Iterator[Audit]:
        """Iterate over the finished audits of this value set in commit order, and wait for further ones.

        All processes that use the store contribute. Failed audits are included, with the status "failed". The iteration
        ends when no audit was finished for ``timeout`` seconds, or the chain is closed.

        Args:
            after: the ``position`` of the audit after which to begin; 0 begins with the first in the store, None with
                the next one that is finished.
            timeout: maximum number of seconds to wait for the next audit; 0 does not wait, None has no limit.

        Raises:
            ValueError: an argument is out of range.
            SafiError: the store could not be read.
        """
        return iter(self._audit_stream(after, timeout))

    def aaudits(self, after: int | None = 0, timeout: float | None = None) -> AsyncIterator[Audit]:
        """Asynchronous version of ``audits``."""
        return aiter(self._audit_stream(after, timeout))

    def _audit_stream(self, after: int | None, timeout: float | None) -> AuditStream:
        return AuditStream(self._auditor.store, self.values.name, after, timeout, self._drained.is_set)

    def reaudit(self, turn_ids: Iterable[str] | None = None) -> int:
        """Repeat failed audits; returns their number. ``drain`` waits for them.

        Each re-audit is a new turn at the end of its memory key, with its own log line, which has the flag "reaudited"
        and the first turn's id in ``reauditOf``; μ is updated there. A turn with a successful or open re-audit is
        skipped.

        Args:
            turn_ids: ids as in ``response_metadata["safi"]["turnId"]``. Default: all failed ones of this value set.

        Raises:
            TypeError: ``turn_ids`` is not a list.
            ValueError: an id is unknown to the store.
            ClosedError: the chain was closed.
        """
        if self._closed:
            raise ClosedError("The chain is closed.")
        ids = None if turn_ids is None else _as_tuple("turn_ids", turn_ids)
        store, count = self._auditor.store, 0
        for turn_id in failed_audits(store, self.values.name, ids):
            if (job := add_reaudit(store, self.values.name, turn_id)) is not None:
                self._auditor.submit(job)
                count += 1
        return count

    def erase(
        self,
        turn_ids: Iterable[str] | None = None,
        *,
        key: str | None = None,
        older_than: timedelta | None = None,
    ) -> Erased:
        """Remove the contents of turns from the store and its logs, as ``safi_agent.erasure.erase`` describes.

        Args:
            turn_ids: ids as in ``response_metadata["safi"]["turnId"]``.
            key: instead, all turns of this memory key.
            older_than: only turns that were answered longer ago than this; with ``key``, or for all keys.

        Raises:
            TypeError: ``turn_ids`` is not a list.
            ValueError: not exactly one way to choose turns is given, or ``older_than`` is negative.
            UnknownTurnError: the store does not have a turn.
            SafiError: the store failed.
        """
        ids = None if turn_ids is None else _as_tuple("turn_ids", turn_ids)
        return erase(self._auditor.store, turn_ids=ids, key=key, older_than=older_than)

    @property
    def backpressure(self) -> Backpressure:
        """The bound on open audits."""
        return self._backpressure

    @property
    def tools(self) -> frozenset[str]:
        """The names of the tools that are bound to the model, whose calls the caller makes."""
        return self._tools

    @property
    def gate(self) -> Will:
        """The Will, which every draft has to pass."""
        return self._will

    @property
    def release(self) -> Release:
        """The last step, which makes a turn durable and returns its answer."""
        return self._release

    def find_turn(self, turn_id: str) -> tuple[int, Mapping[str, Any]] | None:
        """The number and body of the released turn with this id."""
        return self._auditor.store.find_turn(turn_id)

    def secret(self, name: str) -> str:
        """A secret key of the store, the same in every process that uses it."""
        return read_secret(self._auditor.store, name)

    @override
    def drain(self, timeout: float | None = 30) -> DrainResult:
        return self._auditor.drain(timeout)

    @override
    def close(self, timeout: float | None = 30) -> DrainResult:
        if not self._closed:
            backlog.monitor.remove(self._auditor.store, self.values.name)
        self._closed[:] = [True]
        finished = self.drain(timeout)
        self._auditor.stop(0)
        self._drained.set()
        self._auditor.store.commit_listeners.notify(())
        return finished


def _as_tuple(argument: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise TypeError(f"{argument}: expected a list, got {value!r}.")
    return tuple(value)


def create_safi_chain(
    model: Model | None = None,
    values: str | Path | Mapping[str, Any] | ValueSet = defaults.VALUES,
    *,
    will_model: Model | None = None,
    conscience_model: Model | None = None,
    escalation_model: Model | None = None,
    check_share: float = defaults.CHECK_SHARE,
    judge_drift_above: float = defaults.JUDGE_DRIFT_ABOVE,
    store: str | None = defaults.STORE,
    log: str | Path | None = defaults.LOG,
    log_max_bytes: int | None = None,
    hooks: Sequence[Hook] = (),
    beta: float = defaults.BETA,
    review_below: float = defaults.REVIEW_BELOW,
    drift_above: float = defaults.DRIFT_ABOVE,
    phi: Map = identity,
    sigma: Map = linear,
    conscience_calls: Calls = defaults.CONSCIENCE_CALLS,
    score_mode: ScoreMode = defaults.SCORE_MODE,
    will_sees_reflection: bool = defaults.WILL_SEES_REFLECTION,
    drafts: int = defaults.DRAFTS,
    embeddings: Embeddings | None = None,
    drafts_alike: float | None = None,
    min_agreement: float = defaults.MIN_AGREEMENT,
    refuse_truncated: bool = defaults.REFUSE_TRUNCATED,
    raise_on_violation: bool = defaults.RAISE_ON_VIOLATION,
    audit_attempts: int = defaults.AUDIT_ATTEMPTS,
    audit_backoff: float = defaults.AUDIT_BACKOFF,
    audit_timeout: float = defaults.AUDIT_TIMEOUT,
    audit_mode: AuditMode = defaults.AUDIT_MODE,
    max_pending: int | None = defaults.MAX_PENDING,
    when_full: WhenFull = defaults.WHEN_FULL,
    tracers: Sequence[BaseCallbackHandler] = (),
    trace_contents: bool = defaults.TRACE_CONTENTS,
    redact: Redact | None = None,
    will_mode: WillMode = defaults.WILL_MODE,
    sampling: Sampling = EVERY_ANSWER,
    prompts: str | Path | Mapping[str, Any] | Prompts = DEFAULT_PROMPTS,
    refused: RefusedRecord = defaults.REFUSED,
    outage_message: str | None = None,
) -> SafiChain:
    """Create a runnable that answers only what its Will approves, and audits every answer value by value.

    Args:
        model: the Intellect: a chat model, a name for ``init_chat_model``, or "offline" for the rehearsal model, which
            labels every answer and record. Default: "openai:gpt-4o", which needs OPENAI_API_KEY. If tools are bound to
            it (``bind_tools``), the message has its calls, once the Will has approved them, and the caller makes them.
        values: a shipped set ("unesco", "civic", "professional"), a YAML file, a mapping or a ValueSet.
        will_model: the model that judges drafts. Default: ``model``.
        conscience_model: the model that audits answers, or "local:FOLDER" for a judge of ``safi train-judge``.
            Default: ``model``.
        escalation_model: the model that is asked where a local judge is not sure. With None such values are not
            scored, and the turn is flagged.
        check_share: share of the turns, in [0, 1], in which ``escalation_model`` is asked about all values, so that
            its agreement with the local judge can be measured.
        judge_drift_above: a higher running share of disagreement of the two, in [0, 1], calls the hooks with
            "judge_drift".
        store: the URL of a SQLite or PostgreSQL database ("postgresql+psycopg://…", for several processes on several
            machines); None keeps memory and outbox in memory until the process ends.
        log: the file of the log, one JSON line per turn; None writes no log.
        log_max_bytes: at least 4096; a log of this size is rotated.
        hooks: sync or async functions of an Alert, called when a score is low, a drift is high, or an audit failed.
        beta: the share of μ that each audit keeps, in [0, 1).
        review_below: a lower score calls the hooks with "review".
        drift_above: a higher drift calls the hooks with "drift".
        phi: φ, maps a confidence in [0, 1] to its weight in the score.
        sigma: σ, maps the weighted sum in [-1, 1] to the score before it is rounded.
        conscience_calls: "all" asks the Conscience about all values in one call, "each" in one call per value.
        score_mode: "discrete" for the scores -1, 0, 0.5 and 1, or "continuous" for any number in [-1, 1].
        will_sees_reflection: whether the Will's judge is given the Intellect's reflection.
        drafts: how many drafts the Intellect writes, 1 to 64; the one with the most agreement is used (docs/safi.md).
        embeddings: compares the drafts. Default: a bag of words.
        drafts_alike: the cosine similarity, in [-1, 1], from which two drafts agree. Default: 0.6 for words, 0.8 for
            ``embeddings``.
        min_agreement: the share of drafts, in [0, 1], that have to agree; with fewer the Will refuses.
        refuse_truncated: whether the Will refuses a draft that its model cut off at a length limit. It is always
            flagged as ``draft_truncated``.
        raise_on_violation: raise ViolationError instead of returning the refusal, and JudgeUnavailableError if the
            Will's judge could not be asked.
        audit_attempts: number of attempts before an audit is recorded as failed.
        audit_backoff: seconds before the second attempt, doubled for each further one.
        audit_timeout: seconds that one attempt, or one call of a hook, may take.
        audit_mode: "in_process" audits in this process too; "worker" leaves it to workers on the same PostgreSQL store.
        max_pending: maximum number of open audits; None for no bound.
        when_full: behaviour of a new turn beyond it: "wait" (at most 30 s), "refuse" with BacklogError, or "warn" and
            continue.
        tracers: callback handlers that receive the inner runs too, with their drafts. A caller's own handlers receive
            the input and the answer only.
        trace_contents: whether OpenTelemetry spans and events include contents: prompts, drafts (refused ones too),
            answers, reasons and the memory key.
        redact: a function of a text, which is applied to all contents of a turn before they are stored: prompt,
            context, draft, answer, reasons and metadata. The caller gets the answer itself; the audit gets what was
            stored. If it fails, nothing is stored and RedactionError is raised.
        will_mode: "enforce" withholds a draft that the Will refuses. "shadow" returns it: the Will rules, the answer
            leaves, and the record and the answer's metadata have the flag ``shadow``. Only to observe the Will.
        sampling: which answers are audited. Default: all. The record has the reason.
        prompts: prompts of the faculties in place of the defaults: Prompts, a YAML file or a mapping.
        refused: what is stored of a refused draft: "minimal" for neither draft nor reflection, "full" for both.
        outage_message: returned in place of the refusal if the model of the Will's judge failed. Default: the refusal.
            The answer has the flag ``judge_failed`` in either case.

    Raises:
        ImportError: ``drafts`` is above 1 and sal_lightning is not installed.
        TypeError: an argument has another type.
        ValueError: an argument has a value that is not allowed, no model is configured, or the store cannot be opened.
    """
    return SafiChain(
        values=load_values(values),
        model=default_model() if model is None else model,
        will_model=will_model,
        conscience_model=conscience_model,
        escalation_model=escalation_model,
        check_share=check_share,
        judge_drift_above=judge_drift_above,
        store=store,
        log=None if log is None else log_path(log),
        log_max_bytes=log_max_bytes,
        hooks=_as_tuple("hooks", hooks),
        beta=beta,
        review_below=review_below,
        drift_above=drift_above,
        phi=phi,
        sigma=sigma,
        conscience_calls=conscience_calls,
        score_mode=score_mode,
        will_sees_reflection=will_sees_reflection,
        drafts=drafts,
        embeddings=embeddings,
        drafts_alike=drafts_alike,
        min_agreement=min_agreement,
        refuse_truncated=refuse_truncated,
        raise_on_violation=raise_on_violation,
        audit_attempts=audit_attempts,
        audit_backoff=audit_backoff,
        audit_timeout=audit_timeout,
        audit_mode=audit_mode,
        max_pending=max_pending,
        when_full=when_full,
        tracers=_as_tuple("tracers", tracers),
        trace_contents=trace_contents,
        redact=redact,
        will_mode=will_mode,
        sampling=sampling,
        prompts=load_prompts(prompts),
        refused=refused,
        outage_message=outage_message,
    )
