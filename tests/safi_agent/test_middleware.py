"""What an agent says under SafiMiddleware, awaited and not."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from safi_agent import IntellectError, SafiMiddleware, ViolationError
from tests.safi_agent.agents.calling import Calling, Tools, ask, both, call, calls, on_words, records, texts
from tests.safi_agent.fakes import VIOLATION, Fake, approve, in_turn
from tests.safi_agent.reachable_objects import found


@pytest.mark.slow
@both
def test_an_approved_answer_leaves_and_is_audited_once(govern: Any, tmp_path: Any, awaited: bool) -> None:
    middleware = govern()
    agent = create_agent(Calling(intellect="Yes.\n<reflection>Honest.</reflection>"), [], middleware=[middleware])
    out = ask(agent, awaited)
    assert texts(out) == ["q", "Yes."]
    told = out["messages"][-1].response_metadata["safi"]
    assert (told["willDecision"], told["auditStatus"], told["turn"]) == ("approve", "pending", 1)
    assert middleware.drain() == 1
    (record,) = records(tmp_path)
    assert (record["turnId"], record["finalOutput"], record["intellectReflection"]) == (
        told["turnId"],
        "Yes.",
        "Honest.",
    )
    assert record["auditStatus"] == "complete"
    assert record["models"]["intellect"] == "fake"


@both
def test_a_refused_draft_is_the_fixed_text_and_the_agent_ends(govern: Any, tmp_path: Any, awaited: bool) -> None:
    middleware, model = govern(Fake(will=VIOLATION)), Calling()
    out = ask(create_agent(model, [], middleware=[middleware]), awaited)
    assert texts(out) == ["q", "No."]
    assert len(model.asked("intellect")) == 1
    middleware.drain()
    (record,) = records(tmp_path)
    assert (record["willDecision"], record["auditStatus"]) == ("violation", "none")


def test_the_values_the_callers_prompt_and_the_note_reach_the_agents_model(govern: Any) -> None:
    model = Calling()
    agent = create_agent(model, [], system_prompt="Speak like a clerk.", middleware=[govern()])
    ask(agent)
    (asked,) = model.asked("intellect")
    assert [m.type for m in asked] == ["system", "human"]
    assert "- Truth: " in str(asked[0].text)
    assert str(asked[0].text).endswith("Speak like a clerk.")


@both
def test_an_answer_of_another_middleware_is_governed_before_the_agent_ends(
    govern: Any, tmp_path: Any, awaited: bool
) -> None:
    class Last(AgentMiddleware):
        @hook_config(can_jump_to=["end"])
        def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
            return {"jump_to": "end", "messages": [AIMessage("the limit is reached, thief", id="mine")]}

    middleware = govern(Fake(will=on_words("thief")))
    out = ask(create_agent(Calling(), [], middleware=[Last(), middleware]), awaited)
    assert texts(out) == ["q", "No."]
    middleware.drain()
    assert [record["willDecision"] for record in records(tmp_path)] == ["violation"]


@both
def test_an_answer_that_another_middleware_rewrites_is_governed_again(
    govern: Any, tmp_path: Any, awaited: bool
) -> None:
    class Rewrites(AgentMiddleware):
        def after_model(self, state: Any, runtime: Any) -> dict[str, Any]:
            return {"messages": [state["messages"][-1].model_copy(update={"content": "something else"})]}

    middleware = govern()
    out = ask(create_agent(Calling(), [], middleware=[Rewrites(), middleware]), awaited)
    assert texts(out)[-1] == "something else"
    assert middleware.drain() == 2
    assert [record["finalOutput"] for record in records(tmp_path)] == ["An answer.", "something else"]


@both
def test_sent_back_to_its_model_the_agents_next_answer_is_another_turn(
    govern: Any, tmp_path: Any, awaited: bool
) -> None:
    class Back(AgentMiddleware):
        @hook_config(can_jump_to=["model"])
        def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            if len(state["messages"]) > 2:
                return None
            return {"jump_to": "model", "messages": [HumanMessage("Shorter.")]}

    middleware, model = govern(), Calling(intellect=in_turn("Long.", "Short."))
    out = ask(create_agent(model, [], middleware=[Back(), middleware]), awaited)
    assert texts(out) == ["q", "Long.", "Shorter.", "Short."]
    assert middleware.drain() == 2
    assert [record["finalOutput"] for record in records(tmp_path)] == ["Long.", "Short."]


@both
def test_a_turn_id_answers_once_and_no_tool_runs_again(govern: Any, tmp_path: Any, awaited: bool) -> None:
    tools, middleware = Tools(), govern()
    model = Calling(intellect=in_turn(calls(call("pay", amount=5)), "Paid.", "again?"))
    agent = create_agent(model, tools.of(), middleware=[middleware])
    config = {"configurable": {"safi_turn_id": "order-7"}}
    first, second = ask(agent, awaited, config=config), ask(agent, awaited, config=config)
    assert texts(first)[-1] == texts(second)[-1] == "Paid."
    assert texts(second) == ["q", "Paid."]
    assert tools.did == ["pay 5 to no one"]
    assert middleware.drain() == 1
    assert [record["turnId"] for record in records(tmp_path)] == ["order-7"]


@both
def test_a_model_that_fails_is_an_error_without_its_words(govern: Any, tmp_path: Any, awaited: bool) -> None:
    middleware = govern()
    agent = create_agent(Calling(intellect=ValueError("could not parse secret")), [], middleware=[middleware])
    with pytest.raises(IntellectError) as caught:
        ask(agent, awaited)
    assert found(caught.value, "secret", __file__) == []
    middleware.drain()
    assert records(tmp_path)[0]["flags"] == ["intellect_failed"]


def test_a_refusal_can_be_an_error(govern: Any) -> None:
    agent = create_agent(Calling(), [], middleware=[govern(Fake(will=VIOLATION), raise_on_violation=True)])
    with pytest.raises(ViolationError, match=r"^No\."):
        ask(agent)


def test_keys_have_memories_of_their_own(govern: Any, tmp_path: Any) -> None:
    middleware = govern()
    agent = create_agent(Calling(), [], middleware=[middleware])
    for key in ("ann", "bo", "ann"):
        ask(agent, config={"configurable": {"safi_key": key}})
    middleware.drain()
    assert sorted((r["memoryKey"], r["turn"]) for r in records(tmp_path)) == [("ann", 1), ("ann", 2), ("bo", 1)]


def test_token_usage_of_model_and_judges_is_in_the_messages(govern: Any) -> None:
    spent: Any = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
    judge = Fake(will=AIMessage(approve(), usage_metadata=spent))
    model = Calling(
        intellect=in_turn(calls(call("search", q="x"), usage_metadata=spent), AIMessage("Ok.", usage_metadata=spent))
    )
    out = ask(create_agent(model, Tools().of(), middleware=[govern(judge, judge_calls=True)]))
    used = [m.usage_metadata["total_tokens"] for m in out["messages"] if isinstance(m, AIMessage)]
    assert used == [22, 22]


def test_an_input_without_words_is_refused_with_what_is_expected(govern: Any) -> None:
    agent = create_agent(Calling(), [], middleware=[govern()])
    with pytest.raises(ValueError, match="expected a prompt that contains text"):
        ask(agent, given={"messages": [SystemMessage("s"), HumanMessage("")]})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"allowed_tools": "search"}, "allowed_tools: expected a list of names and ToolRules"),
        ({"allowed_tools": [5]}, "allowed_tools: expected names and ToolRules, got 5"),
        ({"review": "yes"}, "review: expected a synchronous function"),
        ({"model": 5}, "model: expected a chat model"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        SafiMiddleware("unesco", **{"store": None, "log": None, "model": "offline", **settings})
