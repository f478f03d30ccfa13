"""Taking a turn through a course, written once for those that wait and once for those that do not.

A course is a generator: it yields a faculty and the turn to take through it, gets the turn back, and returns what
leaves. Errors are raised as they came: a course is walked within ``boundary.contain`` alone.
"""

import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

from langchain.agents.middleware import ModelRequest, ModelResponse, ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from safi_agent.agents.final_answer import digest, result_id
from safi_agent.agents.replies import (
    Reply,
    Verdicts,
    answer_of,
    call_draft,
    call_text,
    ends_run,
    journal,
    leaving,
    made_calls,
    mark_of,
    read_reply,
)
from safi_agent.agents.signatures import Marks
from safi_agent.agents.tools import Rules, denial, offered, tool_name
from safi_agent.chain import SafiChain
from safi_agent.error_boundary import input_errors
from safi_agent.faculties.intellect import Intellect, without_reasoning
from safi_agent.faculties.will import BY_RULES, REPLY, UnfinishedError, Will, rules_at_once
from safi_agent.idempotency import Name, inside, key_of, name_of, place_of
from safi_agent.isolation import Inside, counts
from safi_agent.models import model_label
from safi_agent.release import is_same, message, moved
from safi_agent.turn import Turn, Verdict

T = TypeVar("T")
Course = Generator[tuple[Runnable[Turn, Turn], Turn], Turn, T]


def walk(inside: Inside, course: Course[T], config: RunnableConfig) -> T:
    """What the course returns."""
    back: Any = None
    while True:
        try:
            step, turn = course.send(back)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        back = inside.govern(step, turn, config)


async def awalk(inside: Inside, course: Course[T], config: RunnableConfig) -> T:
    """The same without blocking."""
    back: Any = None
    while True:
        try:
            step, turn = course.send(back)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        back = await inside.agovern(step, turn, config)


def step_of(call: ToolCall, messages: Sequence[AnyMessage]) -> str:
    """The tool's name, and how often exactly this call was made before since the user last spoke.

    It is the same when the run is done again, though the ids of calls are not.

    >>> asked = AIMessage("", tool_calls=[{"name": "look", "args": {"q": "x"}, "id": i} for i in ("a", "b")])
    >>> [step_of(call, [HumanMessage("Why?"), asked]) for call in asked.tool_calls]
    ['look', 'look.1']
    """
    last = max((n for n, message in enumerate(messages) if isinstance(message, HumanMessage)), default=-1)
    made = [c for m in messages[last + 1 :] if isinstance(m, AIMessage) for c in m.tool_calls]
    same = [c["id"] for c in made if (c["name"], c["args"]) == (call["name"], call["args"])]
    before = same.index(call["id"]) if call["id"] in same else len(same)
    return f"{call['name']}.{before}" if before else call["name"]


log = logging.getLogger("safi_agent")
Review = Callable[[ToolCall], object]
ASKED = f"""You are the Will: you decide whether an agent may make the tool call that it drafted for the user. Approve \
it only if it serves what the user asked for and breaks none of these values. When in doubt: violation.

{{values}}
{{gates}}
{{clause}}

{REPLY}"""
REFUSED = "It would not keep to the values."
WITHHELD = Verdict("violation", "It was denied before.", "mark_unverified")


class Asking:
    """The agent's own model as the Intellect asks it; keeps what the call came to, structured output included."""

    def __init__(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Any],
        rules: Rules | None,
        name: str | None,
    ):
        self.request, self._handler, self.name = request, handler, name
        self._tools = offered(request.tools, rules)
        self.known = {tool_name(tool) for tool in request.tools}
        self.response: ModelResponse[Any]

    def runnable(self, *, awaited: bool) -> Runnable[Any, AIMessage]:
        """Messages in, the model's message out."""
        return RunnableLambda(self._aask if awaited else self._ask, name="model")

    def _request(self, messages: Sequence[Any]) -> ModelRequest[Any]:
        return self.request.override(system_message=messages[0], messages=list(messages[1:]), tools=self._tools)

    def _ask(self, messages: Sequence[Any]) -> AIMessage:
        self.response = self._handler(self._request(messages))
        return answer_of(self.response)

    async def _aask(self, messages: Sequence[Any]) -> AIMessage:
        self.response = await self._handler(self._request(messages))
        return answer_of(self.response)


@dataclass(frozen=True)
class Courses:
    """The settings of the courses: who judges, which calls are allowed, which a person has to see."""

    chain: SafiChain
    rules: Rules | None
    judge_calls: bool
    review: Review | None
    marks: Marks

    def open(self, messages: Sequence[AnyMessage], config: RunnableConfig) -> tuple[str, AIMessage | None]:
        """The name of a new run of the agent, and the last answer that this run has given; None where it is new.

        It is not given again under an id that a message of the thread has, which it would replace.

        Raises:
            ClosedError, TypeError, ValueError, OutboxError: as for ``SafiChain.begin``.
        """
        values, agent = self.chain.values.name, str((config.get("metadata") or {}).get("lc_agent_name") or "")
        place = ["agent", agent, *place_of(config)[:-1]]  # without the node in which this is called
        run = name_of(config, messages, key_of(config, values), values, place)
        if not run.asked:
            return run.text, None
        turn, answer = self.chain.known(self.chain.begin(list(messages), config, note="", name=run))
        if answer is not None:
            answer = self._last_answer(turn, answer)
            if any(earlier.id == answer.id for earlier in messages):
                answer.id = None
        return Name(turn["id"], turn["asked"], turn["spare"]).text, answer

    def _last_answer(self, turn: Turn, first: AIMessage) -> AIMessage:
        """A run that is sent back to its model answers again, under the ids that ``place`` gives."""
        answer = first
        for n in count(1):
            before = self.chain.answered(f"{turn['id']}.{n}")
            if before is None or not is_same(before[1], turn):
                break
            answer = message(before[1], before[0])
        return answer

    def inside(self, request: ToolCallRequest, config: RunnableConfig) -> AbstractContextManager[None]:
        """Within it, governed runs that a tool starts get ids derived from this run and from the call."""
        run = Name.read(request.state.get("safi_run") or "")
        return inside(config, run.asked, step_of(request.tool_call, request.state["messages"]))

    def begin(self, run: str, messages: Sequence[AnyMessage], config: RunnableConfig) -> Turn:
        """A turn of this run of the agent; ``context`` has what was said and what the tools gave."""
        with input_errors():
            turn = self.chain.begin(list(messages), config, name=Name.read(run))
        turn = {**turn, "metadata": {"agentRun": turn["id"]}}
        tools = journal(turn, messages, self.marks)
        return {**turn, "metadata": {**turn["metadata"], **({"tools": tools} if tools else {})}}

    def place(self, turn: Turn, *, again: bool = True) -> tuple[Turn, AIMessage | None]:
        """The turn with an id that is free, and its answer where exactly this was answered before.

        One run answers once, unless it is sent back to its model: then the next answer is another turn. ``again=False``
        takes a new turn in any case. Where another run of the same name came first, the turn gets its spare id.
        """
        for n in count():
            placed: Turn = {**turn, "id": f"{turn['id']}.{n}" if n else turn["id"]}
            before = self.chain.answered(placed["id"])
            if before is None:
                return placed, None
            number, kept = before
            if turn["spare"] and not is_same(kept, turn):
                return self.place(moved(turn), again=again)
            if again and all(kept[key] == placed[key] for key in ("prompt", "context", "key")):
                return placed, message(kept, number)
        raise AssertionError  # count() does not end

    def draft(self, turn: Turn, asking: Asking, *, awaited: bool) -> Course[ModelResponse[Any]]:
        """Intellect, the calls' rules, Will, and for an answer the release."""
        plain = asking.request.response_format is None
        turn = yield Intellect(asking.runnable(awaited=awaited), self.chain.values, reflects=plain), turn
        reply = read_reply(asking.response, turn["draft"])
        verdicts = yield from self._rule_all(turn, reply, asking.known)
        turn = {**turn, "draft": turn["draft"]._replace(answer=reply.words, texts=reply.texts)}
        if reply.words or reply.final:
            turn = yield self.chain.gate, turn
        approved = "verdict" not in turn or turn["verdict"].decision == "approve"
        made = made_calls(turn, reply, verdicts, asking.known, self.marks)
        if approved and not reply.final:
            usage = counts(_usage(turn, verdicts))
            return ModelResponse([leaving(reply, made, {}, usage, asking.name), *reply.notes])
        if reply.structured is not None:
            left = digest(
                reply.text if reply.notes else reply.words, [c for c, _ in made], reply.notes, reply.structured
            )
            turn = {**turn, "metadata": {**turn["metadata"], "structured": left}}
        turn = yield self._release(asking), turn
        answer = self.chain.give(turn["answer"])
        answer.name = asking.name
        if not approved or reply.structured is None:
            return ModelResponse([answer])
        if reply.notes:
            told = answer.response_metadata["safi"]
            answer = leaving(reply, made, told, answer.usage_metadata, asking.name)
        return ModelResponse([answer, *reply.notes], reply.structured)

    def _release(self, asking: Asking) -> Runnable[Turn, Turn]:
        release = self.chain.release
        return replace(release, models={**release.models, "intellect": model_label(asking.request.model)})

    def _rule_all(self, turn: Turn, reply: Reply, known: Collection[str]) -> Course[Verdicts]:
        verdicts: dict[str, Verdict] = {}
        for call in reply.calls:
            call_id = str(call["id"])
            verdicts[call_id] = reply.broken.get(call_id) or (yield from self.rule(turn, call, known))
        return verdicts

    def rule(
        self, turn: Turn, call: ToolCall, known: Collection[str], before: Verdict | None = None
    ) -> Course[Verdict]:
        """Rules, the patterns of the values, the judge if it is wanted, and whether a person has to see it.

        With a ruling ``before`` on the same call the judge is not asked again; all else is done again.
        """
        verdict = denial(call, self.rules, known)
        if verdict is None:
            verdict = yield from self._judge({**turn, "draft": call_draft(call)}, before)
        if verdict.decision == "violation":
            log.warning("A call of %s was denied (%s): %.120s", call["name"], verdict.code, call_text(call))
            return verdict
        wanted = before is not None and before.code == "review"
        return verdict._replace(code="review") if wanted or self._to_review(call) else verdict

    def _judge(self, turn: Turn, before: Verdict | None) -> Course[Verdict]:
        values = self.chain.values.model_copy(update={"disclaimers": ()})
        judge = self.chain.gate.judge if self.judge_calls and before is None else None
        verdict = yield from self._ruled(turn, Will(judge, values, sees_reflection=False, asked=ASKED))
        if verdict.decision == "approve":
            return Verdict("approve", "", "judge" if self.judge_calls else "rules", verdict.usage)
        log.info("The Will on a call: %s", verdict.reason)
        return verdict._replace(reason=REFUSED)

    def _ruled(self, turn: Turn, ruling: Will) -> Course[Verdict]:
        """What the Will says; without a judge at once, if that can be."""
        if ruling.judge is None:
            with suppress(UnfinishedError):
                return rules_at_once(turn["draft"], ruling.values) or BY_RULES
        turn = yield ruling, turn
        return turn["verdict"]

    def _to_review(self, call: ToolCall) -> bool:
        try:
            return self.review is not None and bool(self.review(call))
        except Exception as error:
            log.error("The review hook failed on a call of %s; a person has to see it.", call["name"], exc_info=error)
            return True

    def call(self, turn: Turn, request: ToolCallRequest) -> Course[Verdict]:
        """What holds for a call that is to be made now: a denial that was made when it left, or all rules again.

        A mark that was not made for this call in this run counts for nothing.
        """
        call = request.tool_call
        mark = mark_of(request.state["messages"], call)
        before = self.marks.read(turn, call, mark)
        if before is None and not call["args"] and isinstance(mark, Mapping) and mark.get("decision") == "violation":
            before = WITHHELD  # its arguments were left out, and the key that signed its mark is gone
        if before is not None and before.decision == "violation":
            return before
        known = [request.tool.name] if request.tool is not None else []
        return (yield from self.rule(turn, call, known, before))

    def place_result(self, turn: Turn, request: ToolCallRequest) -> tuple[Turn, AIMessage | None]:
        """The turn of a tool's result that is to be the agent's answer, as ``place`` gives it.

        The one that the agent ends with has the run's own id, by which it is found when the run is asked for again;
        others have ids that the run and the call make.
        """
        if ends_run(request):
            return self.place(turn)
        return {**turn, "id": result_id(turn["id"], str(request.tool_call["id"]))}, None

    def answer(self, turn: Turn, text: str, known: AIMessage | None = None) -> Course[AIMessage]:
        """An answer that is not the model's own, a tool's result for one, is governed, unless it is ``known``."""
        if known is None:
            turn = yield self.chain.gate | self.chain.release, {**turn, "draft": without_reasoning(text)}
            known = turn["answer"]
        return self.chain.give(known)


def _usage(turn: Turn, verdicts: Verdicts) -> UsageMetadata | None:
    if turn["draft"].usage is None:
        return None
    usage = turn["draft"].usage
    for verdict in (turn.get("verdict"), *verdicts.values()):
        usage = add_usage(usage, verdict.usage if verdict else None)
    return usage
