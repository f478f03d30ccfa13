"""SafiMiddleware: an agent of LangChain says and does only what the Will lets through, and its answers are audited."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
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

from safi_agent.agents.course import Asking, Courses, Review
from safi_agent.agents.replies import denied, governed_result, is_answer, result_text, told_of
from safi_agent.agents.review import seen
from safi_agent.agents.tools import ToolRule, read_rules
from safi_agent.agents.walk import awalk, walk
from safi_agent.chain import create_safi_chain
from safi_agent.drained import Drained
from safi_agent.lifetime import Lifetime
from safi_agent.release import message
from safi_agent.turn import Turn
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
        review: called with each call that may be made; where it returns true (or raises), a person has to see the call
            first: the run stops at an ``interrupt``, which needs a checkpointer.
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
        self._courses = Courses(self.chain, rules, judge_calls, review)

    # The run

    @hook_config(can_jump_to=["end"])
    @override
    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Give the run its id; where the config names one that was answered before, that answer is given again."""
        config = ensure_config()
        run = (config.get("configurable") or {}).get("safi_turn_id")
        if run is None:
            return {"safi_run": str(uuid4())}
        turn = self._courses.begin(run, state["messages"], config)
        before = self.chain.answered(turn["id"])
        if before is None or (before[1]["prompt"], before[1]["key"]) != (turn["prompt"], turn["key"]):
            return {"safi_run": turn["id"]}
        answer = self.chain.give(message(before[1], before[0]))
        return {"safi_run": turn["id"], "messages": [answer], "jump_to": "end"}

    @hook_config(can_jump_to=["end"])
    @override
    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self.before_agent, state, runtime)

    @override
    def after_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """See that the answer is one that was released; another one is governed now."""
        turn = self._ungoverned(state, config := ensure_config())
        if turn is None:
            return None
        last = state["messages"][-1]
        return _instead(last, walk(self.chain.inside, self._courses.last(turn, str(last.text)), config))

    @override
    async def aafter_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        turn = await asyncio.to_thread(self._ungoverned, state, config := ensure_config())
        if turn is None:
            return None
        last = state["messages"][-1]
        return _instead(last, await awalk(self.chain.inside, self._courses.last(turn, str(last.text)), config))

    def _ungoverned(self, state: Any, config: RunnableConfig) -> Turn | None:
        last: AnyMessage = state["messages"][-1]
        if not isinstance(last, AIMessage):
            return None
        kept = self.chain.answered(told_of(last).get("turnId", ""))
        if kept is not None and (last.tool_calls or kept[1]["final"] == str(last.text)):
            return None
        return self._courses.place(self._begin(state, state["messages"][:-1], config), again=False)[0]

    # What the agent says

    @override
    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[..., ModelResponse[Any]]) -> Any:
        """Only what the Will lets through leaves the model's node, and an answer only when it is durable."""
        turn, known = self._place(request, config := ensure_config())
        if known is not None:
            return ModelResponse([self.chain.give(known)])
        asking = Asking(request, handler, self._courses.rules)
        return walk(self.chain.inside, self._courses.draft(turn, asking, awaited=False), config)

    @override
    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[..., Awaitable[ModelResponse[Any]]]
    ) -> Any:
        turn, known = await asyncio.to_thread(self._place, request, config := ensure_config())
        if known is not None:
            return ModelResponse([self.chain.give(known)])
        asking = Asking(request, handler, self._courses.rules)
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
        """Only a call that may be made is made; the model is told of the others."""
        turn = self._begin(request.state, request.state["messages"], config := ensure_config())
        verdict = seen(request.tool_call, walk(self.chain.inside, self._courses.call(turn, request), config))
        if verdict.decision == "violation":
            return denied(request.tool_call, verdict)
        result = handler(request)
        if not is_answer(request):
            return result
        course = self._courses.result(turn, str(request.tool_call["id"]), result_text(result))
        return governed_result(request.tool_call, walk(self.chain.inside, course, config))

    @override
    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        config = ensure_config()
        turn = await asyncio.to_thread(self._begin, request.state, request.state["messages"], config)
        verdict = seen(request.tool_call, await awalk(self.chain.inside, self._courses.call(turn, request), config))
        if verdict.decision == "violation":
            return denied(request.tool_call, verdict)
        result = await handler(request)
        if not is_answer(request):
            return result
        course = self._courses.result(turn, str(request.tool_call["id"]), result_text(result))
        return governed_result(request.tool_call, await awalk(self.chain.inside, course, config))

    @override
    def drain(self, timeout: float | None = 30) -> Drained:
        return self.chain.drain(timeout)

    @override
    def close(self, timeout: float | None = 30) -> Drained:
        return self.chain.close(timeout)


def _instead(last: AnyMessage, answer: AIMessage) -> dict[str, Any]:
    answer.id = last.id
    return {"messages": [answer]}
