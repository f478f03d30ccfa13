"""SafiMiddleware: an agent of LangChain says and does only what the Will lets through, and its answers are audited."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NotRequired
from uuid import uuid4

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ModelRequest,
    ModelResponse,
    ToolCallRequest,
    hook_config,
)
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.types import Command
from typing_extensions import override

from safi_agent.agents.approval import seen
from safi_agent.agents.final_answer import Ending
from safi_agent.agents.governance import Asking, Courses, Review, awalk, walk
from safi_agent.agents.replies import denied, governed_result, is_answer, result_text
from safi_agent.agents.signatures import Marks
from safi_agent.agents.tools import ToolRule, read_rules
from safi_agent.chain import create_safi_chain
from safi_agent.error_boundary import Instead, acontain, contain, input_errors
from safi_agent.lifecycle import Drained, Lifetime
from safi_agent.store.backlog import Backlog
from safi_agent.store.timeout_budget import one_patience
from safi_agent.turn import Turn, Verdict
from safi_agent.values import ValueSet

Result = ToolMessage | Command[Any]


class SafiState(AgentState[Any]):
    """The agent's state, and which run of it this is."""

    safi_run: NotRequired[Annotated[str, PrivateStateAttr]]


class SafiMiddleware(Lifetime, AgentMiddleware[SafiState, Any, Any]):
    """Gates what an agent drafts and what it calls; put it last in the list, so that it is next to model and tools.

    Args:
        values: as for ``create_safi_chain``.
        allowed_tools: names and ToolRules; an empty list allows nothing, None leaves calls unchecked.
        model: who judges drafts and audits answers, unless ``will_model`` or ``conscience_model`` say otherwise.
            Default as for ``create_safi_chain``; the agent's own model is the Intellect.
        judge_calls: whether the Will's judge rules on each tool call too, after the rules.
        review: called with each call that may be made, when it was drafted and again before it is made; where it
            returns true (or raises), a person has to see the call first: the run stops at an ``interrupt``, which
            needs a checkpointer.
        settings: as for ``create_safi_chain``: store, log, hooks, tracers and the others.

    Raises:
        TypeError: an argument has another type.
        ValueError: an argument has a value that is not allowed, or the store cannot be opened; the text names it.
    """

    state_schema = SafiState

    def __init__(
        self,
        values: str | Path | Mapping[str, Any] | ValueSet = "unesco",
        allowed_tools: Iterable[str | ToolRule] | None = None,
        *,
        model: Any = None,
        judge_calls: bool = False,
        review: Review | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        rules = read_rules(allowed_tools)
        if review is not None and (not callable(review) or asyncio.iscoroutinefunction(review)):
            raise TypeError(f"review: expected a plain function of a tool call, got {review!r}.")
        self.chain = create_safi_chain(model, values, **settings)
        marks = Marks(self.chain.secret("calls"), f"{self.chain.values.fingerprint}, judged: {judge_calls}")
        self._courses = Courses(self.chain, rules, judge_calls, review, marks)

    # The run

    @hook_config(can_jump_to=["end"])
    @override
    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Give the run its id; where the config names one that was answered before, that answer is given again."""
        return contain(partial(self._begin_run, state, ensure_config()))

    @hook_config(can_jump_to=["end"])
    @override
    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self.before_agent, state, runtime)

    def _begin_run(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        fresh = {} if state.get("structured_response") is None else {"structured_response": None}  # of an earlier run
        with input_errors():
            run, answer = self._courses.open(state["messages"], config)
        if answer is None:
            return {**fresh, "safi_run": run}
        return {**fresh, "safi_run": run, "messages": [self.chain.give(answer)], "jump_to": "end"}

    @override
    def after_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Compare what the agent ends with to what was released; anything else is governed now.

        Middlewares that stand before this one in the list run their own ``after_agent`` after it.
        """
        return contain(partial(self._end, state, ensure_config()))

    @override
    async def aafter_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        return await acontain(partial(self._aend, state, ensure_config()))

    def _end(self, state: Any, config: RunnableConfig) -> dict[str, Any] | None:
        if (turn := self._ungoverned(ending := Ending.of(state), state, config)) is None:
            return None
        return _instead(ending, walk(self.chain.inside, self._courses.answer(turn, ending.text), config))

    async def _aend(self, state: Any, config: RunnableConfig) -> dict[str, Any] | None:
        ending = Ending.of(state)
        if (turn := await asyncio.to_thread(self._ungoverned, ending, state, config)) is None:
            return None
        return _instead(ending, await awalk(self.chain.inside, self._courses.answer(turn, ending.text), config))

    def _ungoverned(self, ending: Ending, state: Any, config: RunnableConfig) -> Turn | None:
        """A turn for what the agent ends with; None where there is nothing, or it is what was released."""
        if ending.last is None and ending.structured is None:
            return None
        turn = self._begin(state, ending.before, config)
        if ending.is_released(turn, self.chain.answered, self._courses.marks):
            return None
        return self._courses.place(turn, again=False)[0]

    # What the agent says

    @override
    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[..., ModelResponse[Any]]) -> Any:
        """Only what the Will lets through leaves the model's node, and an answer only when it is durable."""
        return contain(partial(self._say, request, handler, ensure_config()))

    @override
    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[..., Awaitable[ModelResponse[Any]]]
    ) -> Any:
        return await acontain(partial(self._asay, request, handler, ensure_config()))

    def _say(self, request: ModelRequest[Any], handler: Callable[..., Any], config: RunnableConfig) -> Any:
        with one_patience():
            turn, known = self._place(request, config)
            if known is not None:
                return ModelResponse([self.chain.give(known)])
            asking = Asking(request, handler, self._courses.rules, _agent_name(config))
            with self.chain.room.place():
                return walk(self.chain.inside, self._courses.draft(turn, asking, awaited=False), config)

    async def _asay(self, request: ModelRequest[Any], handler: Callable[..., Any], config: RunnableConfig) -> Any:
        with one_patience():
            turn, known = await asyncio.to_thread(self._place, request, config)
            if known is not None:
                return ModelResponse([self.chain.give(known)])
            asking = Asking(request, handler, self._courses.rules, _agent_name(config))
            async with self.chain.room.place():
                return await awalk(self.chain.inside, self._courses.draft(turn, asking, awaited=True), config)

    def _place(self, request: ModelRequest[Any], config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        own = [request.system_message] if request.system_message else []
        turn = self._begin(request.state, [*own, *request.messages], config)
        return self._courses.place(turn, again=request.response_format is None)

    def _begin(self, state: Any, messages: list[AnyMessage], config: RunnableConfig) -> Turn:
        return self._courses.begin(state.get("safi_run") or str(uuid4()), messages, config)

    # What the agent does

    @override
    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]) -> Result:
        """Run an approved call; for any other return a ToolMessage that says why.

        Exceptions of the tool pass unchanged.
        """
        config = ensure_config()
        verdict = seen(request.tool_call, contain(partial(self._rule, request, config)))
        if verdict.decision == "violation":
            return contain(partial(self._deny, request, verdict, config))
        with self._courses.inside(request, config):
            return contain(partial(self._result, request, handler, config)) if is_answer(request) else handler(request)

    @override
    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        config = ensure_config()
        verdict = seen(request.tool_call, await acontain(partial(self._arule, request, config)))
        if verdict.decision == "violation":
            return await asyncio.to_thread(contain, partial(self._deny, request, verdict, config))
        with self._courses.inside(request, config):
            if is_answer(request):
                return await acontain(partial(self._aresult, request, handler, config))
            return await handler(request)

    def _begin_call(self, request: ToolCallRequest, config: RunnableConfig) -> Turn:
        return self._begin(request.state, request.state["messages"], config)

    def _rule(self, request: ToolCallRequest, config: RunnableConfig) -> Verdict:
        turn = self._begin_call(request, config)
        return walk(self.chain.inside, self._courses.call(turn, request), config)

    async def _arule(self, request: ToolCallRequest, config: RunnableConfig) -> Verdict:
        turn = await asyncio.to_thread(self._begin_call, request, config)
        return await awalk(self.chain.inside, self._courses.call(turn, request), config)

    def _deny(self, request: ToolCallRequest, verdict: Verdict, config: RunnableConfig) -> ToolMessage:
        return denied(self._begin_call(request, config), request.tool_call, verdict, self._courses.marks)

    def _result(self, request: ToolCallRequest, handler: Callable[..., Result], config: RunnableConfig) -> ToolMessage:
        try:
            result = handler(request)
        except BaseException as error:
            raise Instead(error) from None
        turn, known = self._place_result(request, config)
        course = self._courses.answer(turn, result_text(result), known)
        return _direct(request, walk(self.chain.inside, course, config))

    def _place_result(self, request: ToolCallRequest, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        return self._courses.place_result(self._begin_call(request, config), request)

    async def _aresult(
        self, request: ToolCallRequest, handler: Callable[..., Awaitable[Result]], config: RunnableConfig
    ) -> ToolMessage:
        try:
            result = await handler(request)
        except BaseException as error:
            raise Instead(error) from None
        turn, known = await asyncio.to_thread(self._place_result, request, config)
        course = self._courses.answer(turn, result_text(result), known)
        return _direct(request, await awalk(self.chain.inside, course, config))

    def backlog(self) -> Backlog:
        """How many audits of this value set are open on this store, and how old the oldest is."""
        return self.chain.backlog()

    @override
    def drain(self, timeout: float | None = 30) -> Drained:
        return self.chain.drain(timeout)

    @override
    def close(self, timeout: float | None = 30) -> Drained:
        return self.chain.close(timeout)


def _agent_name(config: RunnableConfig) -> str | None:
    """The name that the agent was created with; a model's own message may be named anything."""
    name = (config.get("metadata") or {}).get("lc_agent_name")
    return name if isinstance(name, str) else None


def _direct(request: ToolCallRequest, answer: AIMessage) -> ToolMessage:
    """The governed answer in the place of the result of a call."""
    return governed_result(request.tool_call["name"], str(request.tool_call["id"]), answer)


def _instead(ending: Ending, answer: AIMessage) -> dict[str, Any]:
    """The governed answer in the place of what the agent would have ended with."""
    last = ending.last
    left: AnyMessage = answer
    if isinstance(last, ToolMessage):
        left = governed_result(last.name, last.tool_call_id, answer)
    if last is not None:
        left.id = last.id
    refused = answer.response_metadata["safi"]["willDecision"] == "violation"
    return {"messages": [left], **({"structured_response": None} if refused and ending.structured is not None else {})}
