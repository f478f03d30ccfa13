"""A run that stops for a person or fails in the middle goes on, and its answer is audited exactly once."""

from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from tests.safi_agent.agents.calling import THREAD, Calling, Tools, ask, both, call, calls, paying, records, texts
from tests.safi_agent.fakes import Fake, in_turn

APPROVE, REJECT = {"type": "approve"}, {"type": "reject", "message": "too much"}


def resume(agent: Any, out: Any, answer: Any, awaited: bool = False) -> Any:
    (stop,) = out["__interrupt__"]
    return ask(agent, awaited, Command(resume={stop.id: answer}), THREAD)


def much(made: Any) -> bool:
    return bool(made["args"].get("amount", 0) > 100)


@both
@pytest.mark.parametrize(
    ("answer", "did"),
    [
        (APPROVE, ["pay 1 to no one", "pay 500 to no one"]),
        (REJECT, ["pay 1 to no one"]),
        ("approve", ["pay 1 to no one"]),
        ({"type": "approved!"}, ["pay 1 to no one"]),
        (True, ["pay 1 to no one"]),
    ],
)
def test_a_call_waits_for_a_person_where_the_hook_wants_one(
    govern: Any, tmp_path: Path, awaited: bool, answer: Any, did: list[str]
) -> None:
    asked: list[Any] = []
    tools, middleware = Tools(), govern(review=lambda made: asked.append(made) or much(made))
    agent, model = paying(middleware, tools)
    out = ask(agent, awaited, config=THREAD)
    (stop,) = out["__interrupt__"]
    assert (stop.value["name"], stop.value["args"], stop.value["tool_call_id"]) == ("pay", {"amount": 500}, "b")
    assert tools.did == ["pay 1 to no one"]
    assert middleware.drain() == 0
    out = resume(agent, out, answer, awaited)
    assert tools.did == did
    assert texts(out)[-1] == "Done."
    assert [made["id"] for made in asked] == ["a", "b", "a"], "when drafted, and before what no person has to see"
    assert middleware.drain() == 1
    (record,) = records(tmp_path)
    decision = "approve" if answer == APPROVE else "violation"
    assert record["metadata"]["tools"][1] == {"name": "pay", "decision": decision, "code": "review"}
    if answer is REJECT:
        assert "A person said no: too much" in str(model.asked("intellect")[1][-1].text)


def test_a_hook_that_fails_lets_a_person_see_the_call(govern: Any) -> None:
    tools = Tools()
    agent, _ = paying(govern(review=lambda made: 1 / 0), tools)
    assert len(ask(agent, config=THREAD)["__interrupt__"]) == 2
    assert tools.did == []


def test_without_a_checkpointer_nothing_is_done(govern: Any) -> None:
    tools, model = Tools(), Calling(intellect=in_turn(calls(call("pay", amount=500)), "Done."))
    agent = create_agent(model, tools.of(), middleware=[govern(review=much)])
    assert "__interrupt__" in ask(agent)
    assert tools.did == []


@both
def test_a_call_that_a_person_edited_elsewhere_is_ruled_anew(govern: Any, awaited: bool) -> None:
    tools, middleware = Tools(), govern(allowed_tools=["pay"])
    model = Calling(intellect=in_turn(calls(call("pay", amount=1)), "Done."))
    human = HumanInTheLoopMiddleware(interrupt_on={"pay": True})
    agent = create_agent(model, tools.of(), middleware=[human, middleware], checkpointer=InMemorySaver())
    ask(agent, awaited, config=THREAD)
    edited = {"type": "edit", "edited_action": {"name": "search", "args": {"q": "x"}}}
    out = ask(agent, awaited, Command(resume={"decisions": [edited]}), THREAD)
    assert tools.did == []
    assert "not allowed" in "".join(texts(out))


@both
def test_each_question_of_a_thread_is_audited_once_and_what_was_said_is_evidence(
    govern: Any, tmp_path: Path, awaited: bool
) -> None:
    judge = Fake()
    tools, middleware = Tools(), govern(judge)
    agent, _ = paying(middleware, tools)
    ask(agent, awaited, config=THREAD)
    out = ask(agent, awaited, {"messages": [HumanMessage("And now?")]}, THREAD)
    assert texts(out)[-1] == "And again."
    assert middleware.drain() == 2
    first, second = records(tmp_path)
    assert (first["userPrompt"], second["userPrompt"]) == ("q", "And now?")
    assert first["turnId"] != second["turnId"]
    assert "tools" in first["metadata"]
    assert "tools" not in second["metadata"], "the first question's calls are not the second's"
    assert "tool pay: paid 1" in str(judge.asked("conscience")[1][-1].text)


class BreaksOnce(AgentMiddleware):
    """Fails after the answer was released and before the step is saved."""

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        response = handler(request)
        if not response.result[0].tool_calls and self.error is not None:
            error, self.error = self.error, None
            raise error
        return response


def test_a_step_that_is_done_again_gives_the_answer_that_was_released(govern: Any, tmp_path: Path) -> None:
    tools, middleware = Tools(), govern()
    agent, model = paying(middleware, tools, BreaksOnce(KeyError("crash")))
    with pytest.raises(KeyError, match="crash"):
        ask(agent, config=THREAD)
    out = agent.invoke(None, THREAD)
    assert texts(out)[-1] == "Done."
    assert len(model.asked("intellect")) == 2, "the model was not asked again"
    assert middleware.drain() == 1
    assert len(records(tmp_path)) == 1
    assert sorted(tools.did) == ["pay 1 to no one", "pay 500 to no one"]


def test_a_run_that_is_taken_up_at_an_edited_question_is_another_turn(govern: Any, tmp_path: Path) -> None:
    middleware = govern()
    model = Calling(intellect=in_turn("One.", "Two."))
    agent = create_agent(model, [], middleware=[middleware], checkpointer=InMemorySaver())
    ask(agent, config=THREAD)
    before = next(state for state in agent.get_state_history(THREAD) if state.next == ("model",))
    message = before.values["messages"][0].model_copy(update={"content": "another question"})
    fork = agent.update_state(before.config, {"messages": [message]}, as_node="SafiMiddleware.before_agent")
    assert texts(agent.invoke(None, fork)) == ["another question", "Two."]
    assert middleware.drain() == 2
    assert [record["userPrompt"] for record in records(tmp_path)] == ["q", "another question"]
