"""Governed agents and chains that run inside other agents and graphs, under one turn id."""

import asyncio
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from tests.safi_agent.agents.calling import Calling, Tools, ask, both, call, calls, records, texts
from tests.safi_agent.fakes import THREE, Fake, in_turn

NAMED: Any = {"configurable": {"safi_turn_id": "req-1"}}


def turn_id(out: Any) -> str:
    return str(out["messages"][-1].response_metadata["safi"]["turnId"])


def tool_of(
    agent: Any, name: str, *, awaited: bool, explicit: bool = False, fails: list[Exception] | None = None
) -> Any:
    """A tool that asks an agent, with the config of its call or by the context alone; it may fail after that."""

    async def aasked(q: str, config: Any) -> str:
        out = await agent.ainvoke({"messages": [HumanMessage(q)]}, config)
        if fails:
            raise fails.pop()
        return texts(out)[-1]

    def asked(q: str, config: Any) -> str:
        out = agent.invoke({"messages": [HumanMessage(q)]}, config)
        if fails:
            raise fails.pop()
        return texts(out)[-1]

    async def by_context(q: str) -> str:
        """Ask."""
        return await aasked(q, NAMED if explicit else None) if awaited else asked(q, NAMED if explicit else None)

    def by_context_now(q: str) -> str:
        """Ask."""
        return asked(q, NAMED if explicit else None)

    return tool(name)(by_context if awaited else by_context_now)


def numbered() -> Any:
    """Calls get ids that are others each time, as from a provider."""
    numbers = count()
    return lambda name, **args: calls(call(name, f"call-{next(numbers)}", **args))


@both
@pytest.mark.parametrize("explicit", [False, True], ids=["context", "explicit"])
def test_asked_the_same_words_a_sub_agent_and_its_agent_keep_their_own_answers(
    govern: Any, tmp_path: Path, awaited: bool, explicit: bool
) -> None:
    middleware = govern()
    sub = create_agent(Calling(intellect="Sub."), [], middleware=[middleware])
    model = Calling(intellect=in_turn(calls(call("ask_sub", q="q")), "Top.", "Again?"))
    top = create_agent(model, [tool_of(sub, "ask_sub", awaited=awaited, explicit=explicit)], middleware=[middleware])
    first, second = ask(top, awaited, config=NAMED), ask(top, awaited, config=NAMED)
    assert texts(first) == ["q", "", "Sub.", "Top."]
    assert texts(second) == ["q", "Top."]
    assert turn_id(first) == turn_id(second) == "req-1"
    assert middleware.drain() == 2
    below, own = records(tmp_path)
    assert (below["finalOutput"], own["finalOutput"], own["turnId"]) == ("Sub.", "Top.", "req-1")
    assert below["turnId"].startswith("req-1/")


@both
def test_done_again_an_agent_calls_no_tool_twice_because_of_its_sub_agent(govern: Any, awaited: bool) -> None:
    """The sub-agent is asked something else, and answers first."""
    tools, made, middleware = Tools(), numbered(), govern()
    sub = create_agent(Calling(intellect="Sub."), [], middleware=[middleware])
    course = [made("ask_sub", q="How much?"), made("pay", amount=5)]
    model = Calling(intellect=in_turn(*course, "Paid.", *course, "Paid twice."))
    top = create_agent(model, [tool_of(sub, "ask_sub", awaited=awaited), *tools.of("pay")], middleware=[middleware])
    outs = [ask(top, awaited, given="Pay.", config=NAMED) for _ in range(2)]
    assert [(texts(out)[-1], turn_id(out)) for out in outs] == [("Paid.", "req-1")] * 2
    assert tools.did == ["pay 5 to no one"]


@pytest.mark.slow
@both
@pytest.mark.parametrize("outer", ["governed", "plain", "middleware of its own"])
def test_after_a_crash_the_whole_is_done_again_and_the_sub_agents_tools_are_not(
    govern: Any, tmp_path: Path, awaited: bool, outer: str
) -> None:
    tools, made = Tools(), numbered()
    inner = govern()
    paying = Calling(intellect=in_turn(made("pay", amount=5), "Paid.", made("pay", amount=5), "Paid twice."))
    sub = create_agent(paying, tools.of("pay"), middleware=[inner])
    model = Calling(intellect=in_turn(made("pay_bill", q="Pay."), made("pay_bill", q="Pay."), "All is paid."))
    crash = tool_of(sub, "pay_bill", awaited=awaited, fails=[KeyError("crash")])
    above = {
        "governed": [inner],
        "plain": [],
        "middleware of its own": [govern(values=THREE.model_copy(update={"name": "other"}))],
    }[outer]
    top = create_agent(model, [crash], middleware=above)
    with pytest.raises(KeyError, match="crash"):
        ask(top, awaited, given="Pay.", config=NAMED)
    out = ask(top, awaited, given="Pay.", config=NAMED)
    assert texts(out)[-1] == "All is paid."
    assert tools.did == ["pay 5 to no one"]
    for middleware in (inner, *above):
        middleware.drain()
    finals = [record["finalOutput"] for record in records(tmp_path)]
    assert sorted(finals) == sorted(["Paid.", *(["All is paid."] if above else [])])


@both
def test_a_sub_agent_that_is_asked_again_in_one_run_answers_anew(govern: Any, awaited: bool) -> None:
    """A run may ask for the state of something twice; done again it gets both answers again."""
    sub_model = Calling(intellect=in_turn("Not yet.", "Ready.", "Never asked."))
    sub = create_agent(sub_model, [], middleware=[govern()])
    made = numbered()
    course = [made("state", q="Ready?"), made("state", q="Ready?")]
    model = Calling(intellect=in_turn(*course, RuntimeError("down"), *course, "It is ready."))
    top = create_agent(model, [tool_of(sub, "state", awaited=awaited)], middleware=[govern()])
    with pytest.raises(Exception, match="no draft"):
        ask(top, awaited, config=NAMED)
    assert texts(ask(top, awaited, config=NAMED)) == ["q", "", "Not yet.", "", "Ready.", "It is ready."]
    assert len(sub_model.asked("intellect")) == 2


@pytest.mark.slow
@both
def test_two_sub_agents_that_are_asked_the_same_are_two(govern: Any, awaited: bool) -> None:
    middleware = govern()
    both_tools = [
        tool_of(create_agent(Calling(intellect=name), [], middleware=[middleware]), name, awaited=awaited)
        for name in ("lawyer", "accountant")
    ]
    asked = calls(call("lawyer", "1", q="Sell?"), call("accountant", "2", q="Sell?"))
    top = create_agent(Calling(intellect=in_turn(asked, "Top.")), both_tools, middleware=[middleware])
    assert texts(ask(top, awaited, config=NAMED)) == ["q", "", "lawyer", "accountant", "Top."]


@both
def test_agents_without_a_governed_one_around_them_are_told_apart_by_their_names(govern: Any, awaited: bool) -> None:
    both_tools = [
        tool_of(create_agent(Calling(intellect=name), [], name=name, middleware=[govern()]), name, awaited=awaited)
        for name in ("lawyer", "accountant")
    ]
    asked = calls(call("lawyer", "1", q="Sell?"), call("accountant", "2", q="Sell?"))
    top = create_agent(Calling(intellect=in_turn(asked, "Top.")), both_tools)
    assert texts(ask(top, awaited, config=NAMED)) == ["q", "", "lawyer", "accountant", "Top."]


@both
def test_three_deep_all_have_ids_of_their_own_and_the_outermost_has_the_name(
    govern: Any, tmp_path: Path, awaited: bool
) -> None:
    middleware = govern()
    agent = create_agent(Calling(intellect="Deep."), [], middleware=[middleware])
    for name in ("middle", "top"):
        model = Calling(intellect=in_turn(calls(call("ask", q="q")), name))
        agent = create_agent(model, [tool_of(agent, "ask", awaited=awaited)], middleware=[middleware])
    for _ in range(2):
        out = ask(agent, awaited, config=NAMED)
        assert (texts(out)[-1], turn_id(out)) == ("top", "req-1")
    middleware.drain()
    ids = {record["finalOutput"]: record["turnId"] for record in records(tmp_path)}
    assert len(ids) == len(set(ids.values())) == 3
    assert ids["Deep."].startswith(ids["middle"])


@both
def test_two_agents_of_a_graph_are_asked_the_same_and_both_answer(govern: Any, awaited: bool) -> None:
    middleware = govern()
    models = [Calling(intellect=f"{name} says.") for name in ("One", "Two", "Three")]
    agents = [create_agent(model, [], middleware=[middleware]) for model in models]
    graph = StateGraph(MessagesState)
    for name, agent in zip(("one", "two", "three"), agents, strict=True):
        graph.add_node(name, agent)
    graph.add_edge(START, "one").add_edge("one", "two").add_edge(START, "three")
    for _ in range(2):
        out = ask(graph.compile(), awaited, config=NAMED)
        assert sorted(texts(out)) == ["One says.", "Three says.", "Two says.", "q"]
    assert [len(model.asked("intellect")) for model in models] == [1, 1, 1]


@both
def test_a_batch_of_an_agent_under_one_name(govern: Any, awaited: bool) -> None:
    tools = Tools()
    model = Calling(intellect=lambda asked: "Found." if "found" in asked else calls(call("search", q=asked[-1])))
    agent = create_agent(model, tools.of("search"), middleware=[govern()])
    given = [{"messages": [HumanMessage(f"{before} {q}")]} for before, q in (("Look for", "x"), ("Look for", "y"))]
    for _ in range(2):
        outs = asyncio.run(agent.abatch(given, NAMED)) if awaited else agent.batch(given, NAMED)
        assert [out["messages"][0].content for out in outs] == ["Look for x", "Look for y"]
        assert [texts(out)[-1] for out in outs] == ["Found.", "Found."]
    assert sorted(tools.did) == ["search x", "search y"]


def test_a_thread_that_has_the_first_attempt_in_it_is_answered_from_the_store(govern: Any) -> None:
    tools = Tools()
    model = Calling(intellect=in_turn(calls(call("pay", amount=5)), "Paid.", "Again?"))
    agent = create_agent(model, tools.of(), middleware=[govern()], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"safi_turn_id": "order-7", "thread_id": "t"}}
    assert [texts(ask(agent, config=config))[-1] for _ in range(3)] == ["Paid."] * 3
    assert tools.did == ["pay 5 to no one"]


def test_a_run_that_was_sent_back_to_its_model_gives_its_last_answer_again(govern: Any) -> None:
    class Back(AgentMiddleware):
        @hook_config(can_jump_to=["model"])
        def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            if len(state["messages"]) > 2:
                return None
            return {"jump_to": "model", "messages": [HumanMessage("Shorter.")]}

    model = Calling(intellect=in_turn("Long.", "Short.", "Again?"))
    agent = create_agent(model, [], middleware=[Back(), govern()])
    assert texts(ask(agent, config=NAMED))[-1] == "Short."
    assert texts(ask(agent, config=NAMED)) == ["q", "Short."]


@both
def test_runs_side_by_side_under_one_name_are_each_found_again(govern: Any, awaited: bool) -> None:
    """Both begin while the name is free; what was started second is found again under its own id."""
    tools = Tools()
    model = Calling(
        intellect=lambda asked: f"Did {asked[-1]}." if "paid" in asked else calls(call("pay", amount=len(asked)))
    )
    model.delay = 0.05
    agent = create_agent(model, tools.of("pay"), middleware=[govern()])
    given = [{"messages": [HumanMessage(q)]} for q in ("pay a", "pay bb")]
    first, second = (
        asyncio.run(agent.abatch(given, NAMED)) if awaited else agent.batch(given, NAMED) for _ in range(2)
    )
    assert [texts(out)[-1] for out in first] == [texts(out)[-1] for out in second]
    assert len(tools.did) == 2


def test_without_a_name_each_run_has_an_id_of_its_own(govern: Any, tmp_path: Path) -> None:
    middleware = govern()
    sub = create_agent(Calling(intellect="Sub."), [], middleware=[middleware])
    model = Calling(intellect=in_turn(calls(call("ask_sub", q="q")), "Top.", calls(call("ask_sub", q="q")), "Top."))
    top = create_agent(model, [tool_of(sub, "ask_sub", awaited=False)], middleware=[middleware])
    for _ in range(2):
        assert texts(ask(top)) == ["q", "", "Sub.", "Top."]
    middleware.drain()
    assert len({record["turnId"] for record in records(tmp_path)}) == 4


def test_a_chain_in_a_tool_of_a_governed_agent(make: Any, govern: Any, tmp_path: Path) -> None:
    safi = make(Fake(intellect="Below."))

    @tool
    def ask_chain(q: str) -> str:
        """Ask."""
        return str(safi.invoke(q).text)

    model = Calling(intellect=in_turn(calls(call("ask_chain", q="q")), "Top.", "Again?"))
    middleware = govern()
    agent = create_agent(model, [ask_chain], middleware=[middleware])
    assert [texts(ask(agent, config=NAMED))[-1] for _ in range(2)] == ["Top.", "Top."]
    middleware.drain()
    safi.drain()
    assert {record["finalOutput"]: record["turnId"] for record in records(tmp_path)}["Top."] == "req-1"
    assert isinstance(safi.invoke("q", NAMED), AIMessage)
