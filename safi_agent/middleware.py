"""SafiMiddleware: an agent's answers and tool calls have to pass the Will, and its answers are audited."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ModelRequest,
    ModelResponse,
    ToolCallRequest,
    hook_config,
)
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.types import Command
from typing_extensions import override

from safi_agent import defaults
from safi_agent.agents.approval import request_approval
from safi_agent.agents.final_answer import FinalAnswer
from safi_agent.agents.governance import AgentModel, Governance, Review, arun_flow, run_flow
from safi_agent.agents.replies import denial_message, governed_result, is_answer, result_text
from safi_agent.agents.signatures import VerdictSigner
from safi_agent.agents.tools import ToolRule, read_rules
from safi_agent.audit import AuditMode
from safi_agent.audit.finished import Audit
from safi_agent.backpressure import WhenFull
from safi_agent.chain import create_safi_chain
from safi_agent.error_boundary import PassThrough, acontain_errors, contain_errors, input_errors
from safi_agent.faculties.conscience import Calls, ScoreMode
from safi_agent.faculties.spirit import Map, identity, linear
from safi_agent.hooks import Hook
from safi_agent.lifecycle import DrainResult, Lifecycle
from safi_agent.models import Model, model_label
from safi_agent.prompts import DEFAULT_PROMPTS, Prompts
from safi_agent.redaction import Redact
from safi_agent.release import RefusedRecord, WillMode, is_refusal
from safi_agent.sampling import EVERY_ANSWER, Sampling
from safi_agent.store.backlog import Backlog
from safi_agent.store.timeout_budget import shared_timeout_budget
from safi_agent.turn import Verdict
from safi_agent.values import ValueSet

Result = ToolMessage | Command[Any]


class SafiState(AgentState[Any]):
    """The agent's state with the id of its run."""

    safi_run: NotRequired[Annotated[str, PrivateStateAttr]]


class SafiMiddleware(Lifecycle, AgentMiddleware[SafiState, Any, Any]):
    """Governs an agent's drafts and tool calls. It must be the last middleware, next to the model and the tools.

    Args:
        values: as for ``create_safi_chain``.
        allowed_tools: names and ToolRules; an empty list allows nothing, None leaves calls unchecked.
        model: the model that judges drafts and audits answers, unless ``will_model`` or ``conscience_model`` is given.
            The default is that of ``create_safi_chain``. The agent's own model is the Intellect.
        judge_calls: whether the Will's judge also rules on each tool call, after the rules.
        review: called with each allowed call, when it is drafted and again before it is made. If it returns true or
            raises, the call needs human approval: the run stops at an ``interrupt``, which needs a checkpointer.
        will_model: as for ``create_safi_chain``, like all arguments that follow.

    Raises:
        TypeError: an argument has another type.
        ValueError: an argument has a value that is not allowed, or the store cannot be opened; the text names it.
    """

    state_schema = SafiState

    def __init__(
        self,
        values: str | Path | Mapping[str, Any] | ValueSet = defaults.VALUES,
        allowed_tools: Iterable[str | ToolRule] | None = None,
        *,
        model: Model | None = None,
        judge_calls: bool = False,
        review: Review | None = None,
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
    ) -> None:
        super().__init__()
        rules = read_rules(allowed_tools)
        if review is not None and (not callable(review) or asyncio.iscoroutinefunction(review)):
            raise TypeError(f"review: expected a synchronous function of a tool call, got {review!r}.")
        self.chain = create_safi_chain(
            model,
            values,
            will_model=will_model,
            conscience_model=conscience_model,
            escalation_model=escalation_model,
            check_share=check_share,
            judge_drift_above=judge_drift_above,
            store=store,
            log=log,
            log_max_bytes=log_max_bytes,
            hooks=hooks,
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
            tracers=tracers,
            trace_contents=trace_contents,
            redact=redact,
            will_mode=will_mode,
            sampling=sampling,
            prompts=prompts,
            refused=refused,
            outage_message=outage_message,
        )
        signer = VerdictSigner(self.chain.secret("calls"), f"{self.chain.values.fingerprint}, judged: {judge_calls}")
        self._governance = Governance(self.chain, rules, judge_calls, review, signer)

    @override
    def __repr__(self) -> str:
        return f"SafiMiddleware({self.chain!r})"

    # The run

    @hook_config(can_jump_to=["end"])
    @override
    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Assign the run its id; if the config's ``safi_turn_id`` was answered before, return that answer."""
        return contain_errors(partial(self._start_run, state, ensure_config()))

    @hook_config(can_jump_to=["end"])
    @override
    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self.before_agent, state, runtime)

    def _start_run(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        fresh = {} if state.get("structured_response") is None else {"structured_response": None}  # of an earlier run
        with input_errors():
            run, answer = self._governance.start_run(state["messages"], config)
        if answer is None:
            return {**fresh, "safi_run": run}
        with self.chain.call_scope():
            return {**fresh, "safi_run": run, "messages": [self.chain.deliver(answer)], "jump_to": "end"}

    @override
    def after_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Compare the agent's final answer with the released one, and govern any other.

        Middlewares before this one in the list run their own ``after_agent`` after it.
        """
        return contain_errors(partial(self._govern_final, state, ensure_config()))

    @override
    async def aafter_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        return await acontain_errors(partial(self._agovern_final, state, ensure_config()))

    def _govern_final(self, state: Any, config: RunnableConfig) -> dict[str, Any] | None:
        ending = FinalAnswer.from_state(state)
        if (turn := self._governance.begin_ending(ending, state, config)) is None:
            return None
        with self.chain.turn_span():
            answer = run_flow(self.chain, self._governance.answer_flow(turn, ending.text), config)
        return _replace_final(ending, answer)

    async def _agovern_final(self, state: Any, config: RunnableConfig) -> dict[str, Any] | None:
        ending = FinalAnswer.from_state(state)
        if (turn := await asyncio.to_thread(self._governance.begin_ending, ending, state, config)) is None:
            return None
        with self.chain.turn_span():
            answer = await arun_flow(self.chain, self._governance.answer_flow(turn, ending.text), config)
        return _replace_final(ending, answer)

    # Model calls

    @override
    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[..., ModelResponse[Any]]) -> Any:
        """Govern a model call: only approved text and calls leave, and an answer only once it is durable."""
        return contain_errors(partial(self._call_model, request, handler, ensure_config()))

    @override
    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[..., Awaitable[ModelResponse[Any]]]
    ) -> Any:
        return await acontain_errors(partial(self._acall_model, request, handler, ensure_config()))

    def _call_model(self, request: ModelRequest[Any], handler: Callable[..., Any], config: RunnableConfig) -> Any:
        with shared_timeout_budget(), self.chain.turn_span(model_label(request.model)):
            turn, earlier = self._governance.begin_model_call(request, config)
            if earlier is not None:
                return ModelResponse([self.chain.deliver(earlier)])
            model = AgentModel(request, handler, self._governance.rules, _agent_name(config))
            with self.chain.backpressure.admit():
                return run_flow(self.chain, self._governance.model_flow(turn, model, awaited=False), config)

    async def _acall_model(
        self, request: ModelRequest[Any], handler: Callable[..., Any], config: RunnableConfig
    ) -> Any:
        with shared_timeout_budget(), self.chain.turn_span(model_label(request.model)):
            turn, earlier = await asyncio.to_thread(self._governance.begin_model_call, request, config)
            if earlier is not None:
                return ModelResponse([self.chain.deliver(earlier)])
            model = AgentModel(request, handler, self._governance.rules, _agent_name(config))
            async with self.chain.backpressure.admit():
                return await arun_flow(self.chain, self._governance.model_flow(turn, model, awaited=True), config)

    # Tool calls

    @override
    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]) -> Result:
        """Run an approved tool call; for a denied one return a ToolMessage with the reason.

        Exceptions of the tool pass unchanged.
        """
        config = ensure_config()
        verdict = request_approval(request.tool_call, contain_errors(partial(self._check_call, request, config)))
        if verdict.decision == "violation":
            return contain_errors(partial(self._deny, request, verdict, config))
        with self._governance.tool_context(request, config):
            if is_answer(request):
                return contain_errors(partial(self._result, request, handler, config))
            return handler(request)

    @override
    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        config = ensure_config()
        checked = await acontain_errors(partial(self._acheck_call, request, config))
        verdict = request_approval(request.tool_call, checked)
        if verdict.decision == "violation":
            return await asyncio.to_thread(contain_errors, partial(self._deny, request, verdict, config))
        with self._governance.tool_context(request, config):
            if is_answer(request):
                return await acontain_errors(partial(self._aresult, request, handler, config))
            return await handler(request)

    def _check_call(self, request: ToolCallRequest, config: RunnableConfig) -> Verdict:
        turn = self._governance.begin_call(request, config)
        with self.chain.call_scope():
            return run_flow(self.chain, self._governance.tool_call_flow(turn, request), config)

    async def _acheck_call(self, request: ToolCallRequest, config: RunnableConfig) -> Verdict:
        turn = await asyncio.to_thread(self._governance.begin_call, request, config)
        with self.chain.call_scope():
            return await arun_flow(self.chain, self._governance.tool_call_flow(turn, request), config)

    def _deny(self, request: ToolCallRequest, verdict: Verdict, config: RunnableConfig) -> ToolMessage:
        turn = self._governance.begin_call(request, config)
        return denial_message(turn, request.tool_call, verdict, self._governance.signer)

    def _result(self, request: ToolCallRequest, handler: Callable[..., Result], config: RunnableConfig) -> ToolMessage:
        try:
            result = handler(request)
        except BaseException as error:
            raise PassThrough(error) from None
        turn, earlier = self._governance.begin_result(request, config)
        with self.chain.turn_span():
            flow = self._governance.answer_flow(turn, result_text(result), earlier)
            return _as_tool_message(request, run_flow(self.chain, flow, config))

    async def _aresult(
        self, request: ToolCallRequest, handler: Callable[..., Awaitable[Result]], config: RunnableConfig
    ) -> ToolMessage:
        try:
            result = await handler(request)
        except BaseException as error:
            raise PassThrough(error) from None
        turn, earlier = await asyncio.to_thread(self._governance.begin_result, request, config)
        with self.chain.turn_span():
            flow = self._governance.answer_flow(turn, result_text(result), earlier)
            return _as_tool_message(request, await arun_flow(self.chain, flow, config))

    def backlog(self) -> Backlog:
        """The number of open audits of this value set on this store, and the age of the oldest."""
        return self.chain.backlog()

    def audit(self, turn_id: str, timeout: float | None = 30) -> Audit:
        """Return the audit of an answer, as ``SafiChain.audit`` does."""
        return self.chain.audit(turn_id, timeout)

    async def aaudit(self, turn_id: str, timeout: float | None = 30) -> Audit:
        """Asynchronous version of ``audit``."""
        return await self.chain.aaudit(turn_id, timeout)

    def audits(self, after: int | None = 0, timeout: float | None = None) -> Iterator[Audit]:
        """Iterate over finished audits, as ``SafiChain.audits`` does."""
        return self.chain.audits(after, timeout)

    def aaudits(self, after: int | None = 0, timeout: float | None = None) -> AsyncIterator[Audit]:
        """Asynchronous version of ``audits``."""
        return self.chain.aaudits(after, timeout)

    @override
    def drain(self, timeout: float | None = 30) -> DrainResult:
        return self.chain.drain(timeout)

    @override
    def close(self, timeout: float | None = 30) -> DrainResult:
        return self.chain.close(timeout)


def _agent_name(config: RunnableConfig) -> str | None:
    """The name that the agent was created with; a model's own message may be named anything."""
    name = (config.get("metadata") or {}).get("lc_agent_name")
    return name if isinstance(name, str) else None


def _as_tool_message(request: ToolCallRequest, answer: AIMessage) -> ToolMessage:
    """The governed answer as the tool message of a call."""
    return governed_result(request.tool_call["name"], str(request.tool_call["id"]), answer)


def _replace_final(ending: FinalAnswer, answer: AIMessage) -> dict[str, Any]:
    """Replace the agent's final answer by the governed one."""
    last = ending.last
    replacement: AnyMessage = answer
    if isinstance(last, ToolMessage):
        replacement = governed_result(last.name, last.tool_call_id, answer)
    if last is not None:
        replacement.id = last.id
    refused = is_refusal(answer.response_metadata["safi"])
    return {
        "messages": [replacement],
        **({"structured_response": None} if refused and ending.structured is not None else {}),
    }
