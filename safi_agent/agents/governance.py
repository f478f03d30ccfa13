"""Governance of an agent: the steps that its drafts, tool calls and answers go through.

A flow is a generator. It yields a faculty and the turn to run through it, receives the turn with the faculty's result,
and returns what leaves the agent. It is written once and run synchronously or asynchronously. Errors are raised
unchanged, so a flow is run within ``error_boundary`` only.
"""

import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar
from uuid import uuid4

from langchain.agents.middleware import ModelRequest, ModelResponse, ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from safi_agent.agents.final_answer import FinalAnswer, digest, result_id
from safi_agent.agents.replies import (
    Reply,
    Verdicts,
    call_draft,
    ends_run,
    model_message,
    outgoing_message,
    read_reply,
    signed_calls,
    signed_verdict_of,
    tool_records,
)
from safi_agent.agents.signatures import VerdictSigner
from safi_agent.agents.tools import Rules, allowed_only, check_call, tool_name
from safi_agent.chain import SafiChain
from safi_agent.error_boundary import input_errors
from safi_agent.faculties.intellect import Intellect, without_reasoning
from safi_agent.faculties.will import APPROVED_BY_RULES, PatternTimeoutError, Will, rules_within_budget
from safi_agent.generator_driver import adrive, drive
from safi_agent.idempotency import TurnName, derived_ids, memory_key, node_path, turn_name
from safi_agent.models import model_label, token_counts
from safi_agent.release import SHADOW, answer_message, is_refusal, is_same_turn, with_spare_id
from safi_agent.tool_calls import call_text
from safi_agent.turn import Turn, Verdict

T = TypeVar("T")
Flow = Generator[tuple[Runnable[Turn, Turn], Turn], Turn, T]


def run_flow(chain: SafiChain, flow: Flow[T], config: RunnableConfig) -> T:
    """Run each step of a flow and return the flow's result."""
    return drive(flow, lambda request: chain.run_steps(*request, config))


async def arun_flow(chain: SafiChain, flow: Flow[T], config: RunnableConfig) -> T:
    """Asynchronous version of ``run_flow``."""
    return await adrive(flow, lambda request: chain.arun_steps(*request, config))


def call_step(call: ToolCall, messages: Sequence[AnyMessage]) -> str:
    """The tool's name, and how often exactly this call was made before since the user last spoke.

    It is the same when the run is repeated, although the ids of calls differ.

    >>> asked = AIMessage("", tool_calls=[{"name": "look", "args": {"q": "x"}, "id": i} for i in ("a", "b")])
    >>> [call_step(call, [HumanMessage("Why?"), asked]) for call in asked.tool_calls]
    ['look', 'look.1']
    """
    last = max((n for n, message in enumerate(messages) if isinstance(message, HumanMessage)), default=-1)
    calls = [c for m in messages[last + 1 :] if isinstance(m, AIMessage) for c in m.tool_calls]
    same = [c["id"] for c in calls if (c["name"], c["args"]) == (call["name"], call["args"])]
    before = same.index(call["id"]) if call["id"] in same else len(same)
    return f"{call['name']}.{before}" if before else call["name"]


log = logging.getLogger("safi_agent")
Review = Callable[[ToolCall], object]
REFUSED = "It would not keep to the values."
DENIED_BEFORE = Verdict("violation", "It was denied before.", "mark_unverified")


class AgentModel:
    """The agent's own model as a runnable for the Intellect; keeps the full response, with its structured output."""

    def __init__(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Any],
        rules: Rules | None,
        name: str | None,
    ):
        self.request, self._handler, self.name = request, handler, name
        self._tools = allowed_only(request.tools, rules)
        self.tool_names = {tool_name(tool) for tool in request.tools}
        self.response: ModelResponse[Any]

    def runnable(self, *, awaited: bool) -> Runnable[Any, AIMessage]:
        """A runnable from messages to the model's message."""
        return RunnableLambda(self._aask if awaited else self._ask, name="model")

    def _request(self, messages: Sequence[Any]) -> ModelRequest[Any]:
        return self.request.override(system_message=messages[0], messages=list(messages[1:]), tools=self._tools)

    def _ask(self, messages: Sequence[Any]) -> AIMessage:
        self.response = self._handler(self._request(messages))
        return model_message(self.response)

    async def _aask(self, messages: Sequence[Any]) -> AIMessage:
        self.response = await self._handler(self._request(messages))
        return model_message(self.response)


@dataclass(frozen=True)
class Governance:
    """Creates the flows of an agent's run: which calls are allowed, which are judged, and which need approval."""

    chain: SafiChain
    rules: Rules | None
    judge_calls: bool
    review: Review | None
    signer: VerdictSigner

    def start_run(self, messages: Sequence[AnyMessage], config: RunnableConfig) -> tuple[str, AIMessage | None]:
        """The name of a run of the agent, and the last answer of this run; None if the run is new.

        The answer gets no id that a message of the thread has, because it would replace that message.

        Raises:
            ClosedError, TypeError, ValueError, OutboxError: as for ``SafiChain.begin_turn``.
        """
        values, agent = self.chain.values.name, str((config.get("metadata") or {}).get("lc_agent_name") or "")
        place = ["agent", agent, *node_path(config)[:-1]]  # without the node of this call
        run = turn_name(config, messages, memory_key(config, values), values, place)
        if not run.asked:
            return run.text, None
        turn, answer = self.chain.find_answer(self.chain.begin_turn(list(messages), config, note="", name=run))
        if answer is not None:
            answer = self._last_answer(turn, answer)
            if any(earlier.id == answer.id for earlier in messages):
                answer.id = None
        return TurnName(turn["id"], turn["asked"], turn["spare"]).text, answer

    def _last_answer(self, turn: Turn, first: AIMessage) -> AIMessage:
        """A run that is sent back to its model answers again, under the ids that ``assign_id`` gives."""
        answer = first
        for n in count(1):
            before = self.chain.find_turn(f"{turn['id']}.{n}")
            if before is None or not is_same_turn(before[1], turn):
                break
            answer = answer_message(before[1], before[0])
        return answer

    def tool_context(self, request: ToolCallRequest, config: RunnableConfig) -> AbstractContextManager[None]:
        """A context in which governed runs that a tool starts get ids derived from this run and the call."""
        run = TurnName.read(request.state.get("safi_run") or "")
        return derived_ids(config, run.asked, call_step(request.tool_call, request.state["messages"]))

    def begin_turn(self, run: str, messages: Sequence[AnyMessage], config: RunnableConfig) -> Turn:
        """A turn of this run of the agent; its ``context`` has the conversation and the tools' results."""
        with input_errors():
            turn = self.chain.begin_turn(list(messages), config, name=TurnName.read(run))
        turn = {**turn, "metadata": {"agentRun": turn["id"]}}
        tools = tool_records(turn, messages, self.signer)
        return {**turn, "metadata": {**turn["metadata"], **({"tools": tools} if tools else {})}}

    def begin_turn_of(self, state: Mapping[str, Any], messages: Sequence[AnyMessage], config: RunnableConfig) -> Turn:
        """A turn of the run that this state of the agent belongs to."""
        return self.begin_turn(state.get("safi_run") or str(uuid4()), messages, config)

    def begin_call(self, request: ToolCallRequest, config: RunnableConfig) -> Turn:
        """A turn for a tool call."""
        return self.begin_turn_of(request.state, request.state["messages"], config)

    def begin_model_call(self, request: ModelRequest[Any], config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """A turn for a call of the agent's model, and its answer where it was answered before."""
        own = [request.system_message] if request.system_message else []
        turn = self.begin_turn_of(request.state, [*own, *request.messages], config)
        return self.assign_id(turn, again=request.response_format is None)

    def begin_result(self, request: ToolCallRequest, config: RunnableConfig) -> tuple[Turn, AIMessage | None]:
        """A turn for a tool's result that is the agent's answer, and its answer where it was answered before."""
        return self.assign_result_id(self.begin_call(request, config), request)

    def begin_ending(self, ending: FinalAnswer, state: Mapping[str, Any], config: RunnableConfig) -> Turn | None:
        """A turn for the agent's final answer; None where there is no answer, or it is the released one."""
        if ending.last is None and ending.structured is None:
            return None
        turn = self.begin_turn_of(state, ending.before, config)
        if ending.is_released(turn, self.chain.find_turn, self.signer, self.chain.release.as_stored):
            return None
        return self.assign_id(turn, again=False)[0]

    def assign_id(self, turn: Turn, *, again: bool = True) -> tuple[Turn, AIMessage | None]:
        """The turn with an unused id, and its answer if exactly this turn was answered before.

        A run answers once, unless it is sent back to its model: the next answer is then another turn. With
        ``again=False`` it is always a new turn. If the id belongs to another run, the turn gets its spare id.
        """
        for n in count():
            placed: Turn = {**turn, "id": f"{turn['id']}.{n}" if n else turn["id"]}
            before = self.chain.find_turn(placed["id"])
            if before is None:
                return placed, None
            number, body = before
            if turn["spare"] and not is_same_turn(body, turn):
                return self.assign_id(with_spare_id(turn), again=again)
            stored = self.chain.release.as_stored([placed["prompt"], placed["context"]])
            if again and [body["prompt"], body["context"], body["key"]] == [*stored, placed["key"]]:
                return placed, answer_message(body, number)
        raise AssertionError  # unreachable: count() is infinite

    def model_flow(self, turn: Turn, model: AgentModel, *, awaited: bool) -> Flow[ModelResponse[Any]]:
        """Intellect, the calls' rules, Will, and for an answer the release."""
        plain = model.request.response_format is None
        intellect = Intellect(
            model.runnable(awaited=awaited),
            self.chain.values,
            reflects=plain,
            system_prompt=self.chain.prompts.intellect,
        )
        turn = yield intellect, turn
        reply = read_reply(model.response, turn["draft"])
        verdicts = yield from self._rule_calls(turn, reply, model.tool_names)
        turn = {**turn, "draft": turn["draft"]._replace(answer=reply.words, texts=reply.texts)}
        exact: str | None = None
        if reply.words or reply.final:
            turn = yield self.chain.gate, turn
        leaves = "verdict" not in turn or self.chain.release.lets_out(turn["verdict"])
        calls = signed_calls(turn, reply, verdicts, model.tool_names, self.signer)
        if leaves and not reply.final:
            usage = token_counts(_usage(turn, verdicts))
            metadata = yield from self._record_step(turn, model)
            return ModelResponse([outgoing_message(reply, calls, metadata, usage, model.name), *reply.notes])
        if reply.structured is not None:
            exact = digest(
                reply.text if reply.notes else reply.words, [c for c, _ in calls], reply.notes, reply.structured
            )
            # Keyed, because contents could be found by trying what has this fingerprint.
            fingerprint = self.signer.sign_answer(turn, "", exact)
            turn = {**turn, "metadata": {**turn["metadata"], "structured": fingerprint}}
        turn = yield self._release(model), turn
        answer = self._signed(turn, self.chain.deliver(turn["answer"]), exact)
        answer.name = model.name
        if not leaves or reply.structured is None:
            return ModelResponse([answer])
        if reply.notes:
            metadata = answer.response_metadata["safi"]
            answer = outgoing_message(reply, calls, metadata, answer.usage_metadata, model.name)
        return ModelResponse([answer, *reply.notes], reply.structured)

    def _record_step(self, turn: Turn, model: AgentModel) -> Flow[dict[str, Any]]:
        """The metadata of a step that leaves with calls. A refused one, in shadow mode, gets a record and an audit.

        Its id is another one than the run's, under which the answer is found when the run is repeated.
        """
        if self.chain.release.will_mode == "enforce":
            return {}
        if "verdict" not in turn or turn["verdict"].decision == "approve":
            return {"flags": [SHADOW]}
        turn = yield self._release(model), {**turn, "id": str(uuid4()), "asked": "", "spare": ""}
        return dict(turn["answer"].response_metadata["safi"])

    def _signed(self, turn: Turn, answer: AIMessage, exact: str | None = None) -> AIMessage:
        """The answer with a signature of its text, or of ``exact``, if contents are redacted before they are stored."""
        if self.chain.release.redact is not None:
            metadata = answer.response_metadata["safi"]
            text = str(answer.text) if exact is None or is_refusal(metadata) else exact
            signature = self.signer.sign_answer(turn, metadata["turnId"], text)
            answer.response_metadata = {"safi": {**metadata, "signature": signature}}
        return answer

    def _release(self, model: AgentModel) -> Runnable[Turn, Turn]:
        release = self.chain.release
        return replace(release, models={**release.models, "intellect": model_label(model.request.model)})

    def _rule_calls(self, turn: Turn, reply: Reply, tool_names: Collection[str]) -> Flow[Verdicts]:
        verdicts: dict[str, Verdict] = {}
        for call in reply.calls:
            call_id = str(call["id"])
            verdicts[call_id] = reply.broken.get(call_id) or (yield from self._rule_call(turn, call, tool_names))
        return verdicts

    def _rule_call(
        self, turn: Turn, call: ToolCall, tool_names: Collection[str], before: Verdict | None = None
    ) -> Flow[Verdict]:
        """Apply the tool rules, the patterns of the values, the judge if enabled, and the check for human approval.

        With an earlier verdict ``before`` on the same call the judge is not asked again; all other checks are repeated.
        """
        verdict = check_call(call, self.rules, tool_names)
        if verdict is None:
            verdict = yield from self._judge({**turn, "draft": call_draft(call)}, before)
        if verdict.decision == "violation":
            log.warning("A call of %s was denied (%s): %.120s", call["name"], verdict.code, call_text(call))
            return verdict
        wanted = before is not None and before.code == "review"
        return verdict._replace(code="review") if wanted or self._needs_approval(call) else verdict

    def _judge(self, turn: Turn, before: Verdict | None) -> Flow[Verdict]:
        values = self.chain.values.model_copy(update={"disclaimers": ()})
        judge = self.chain.gate.judge if self.judge_calls and before is None else None
        verdict = yield from self._apply_will(
            turn, Will(judge, values, show_reflection=False, system_prompt=self.chain.prompts.tool_call)
        )
        if verdict.decision == "approve":
            return Verdict("approve", "", "judge" if self.judge_calls else "rules", verdict.usage)
        log.info("The Will on a call: %s", verdict.reason)
        return verdict._replace(reason=REFUSED)

    def _apply_will(self, turn: Turn, ruling: Will) -> Flow[Verdict]:
        """The Will's verdict; without a judge computed directly if the patterns allow it."""
        if ruling.judge is None:
            with suppress(PatternTimeoutError):
                return rules_within_budget(turn["draft"], ruling.values) or APPROVED_BY_RULES
        turn = yield ruling, turn
        return turn["verdict"]

    def _needs_approval(self, call: ToolCall) -> bool:
        try:
            return self.review is not None and bool(self.review(call))
        except Exception as error:
            log.error(
                "The review hook failed on a call of %s; the call is submitted to a person.",
                call["name"],
                exc_info=error,
            )
            return True

    def tool_call_flow(self, turn: Turn, request: ToolCallRequest) -> Flow[Verdict]:
        """The verdict on a call that is about to be made: an earlier signed denial, or all rules again.

        A signed verdict on another call, or of another run, is ignored.
        """
        call = request.tool_call
        mark = signed_verdict_of(request.state["messages"], call)
        before = self.signer.verify(turn, call, mark)
        if before is None and not call["args"] and isinstance(mark, Mapping) and mark.get("decision") == "violation":
            before = DENIED_BEFORE  # its arguments were removed, and its signature cannot be verified any more
        if before is not None and before.decision == "violation":
            return before
        tool_names = [request.tool.name] if request.tool is not None else []
        return (yield from self._rule_call(turn, call, tool_names, before))

    def assign_result_id(self, turn: Turn, request: ToolCallRequest) -> tuple[Turn, AIMessage | None]:
        """The turn for a tool's result that is the agent's answer, as ``assign_id`` returns it.

        The agent's final answer gets the run's own id, under which it is found when the run is repeated. Other results
        get ids derived from the run and the call.
        """
        if ends_run(request):
            return self.assign_id(turn)
        return {**turn, "id": result_id(turn["id"], str(request.tool_call["id"]))}, None

    def answer_flow(self, turn: Turn, text: str, earlier: AIMessage | None = None) -> Flow[AIMessage]:
        """Govern an answer that is not the model's own, such as a tool's result; return ``earlier`` if it is given."""
        if earlier is None:
            turn = yield self.chain.gate | self.chain.release, {**turn, "draft": without_reasoning(text)}
            return self._signed(turn, self.chain.deliver(turn["answer"]))
        return self.chain.deliver(earlier)


def _usage(turn: Turn, verdicts: Verdicts) -> UsageMetadata | None:
    if turn["draft"].usage is None:
        return None
    usage = turn["draft"].usage
    for verdict in (turn.get("verdict"), *verdicts.values()):
        usage = add_usage(usage, verdict.usage if verdict else None)
    return usage
