"""Reasoning that a model writes into its text leaves an agent no more than it leaves a chain."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain_core.messages import AIMessage

from tests.safi_agent.agents.calling import Calling, Tools, ask, both, call, calls, records, texts
from tests.safi_agent.fakes import Fake, approve, in_turn


@both
@pytest.mark.parametrize(
    ("said", "left", "flags"),
    [
        ("<think>hidden</think>\nYes.", "Yes.", []),
        ("<think>hidden", "No.", ["structure_reasoning"]),
        (AIMessage("Half a", response_metadata={"finish_reason": "length"}), "Half a", ["draft_truncated"]),
    ],
)
def test_an_agents_answer_loses_its_reasoning(
    govern: Any, tmp_path: Any, awaited: bool, said: Any, left: str, flags: list[str]
) -> None:
    middleware = govern()
    assert texts(ask(create_agent(Calling(intellect=said), [], middleware=[middleware]), awaited)) == ["q", left]
    middleware.drain()
    assert [record["flags"] for record in records(tmp_path)] == [flags]


@pytest.mark.slow
@both
@pytest.mark.parametrize("text", ["<think>hidden</think>", "<think>hidden</think>I look it up.", "<think>hidden"])
def test_reasoning_beside_a_call_stays_inside(govern: Any, awaited: bool, text: str) -> None:
    model = Calling(intellect=in_turn(calls(call("search", q="x"), text=text), "Ok."))
    out = ask(create_agent(model, Tools().of(), middleware=[govern(allowed_tools=["search"])]), awaited)
    assert "hidden" not in repr(out["messages"])
    assert texts(out)[-1] == "Ok."


@both
@pytest.mark.parametrize(("said", "left"), [("<think>hidden</think>Done.", "Done."), ("<think>hidden. Done.", "No.")])
def test_an_answer_of_another_middleware_loses_it_too(govern: Any, awaited: bool, said: str, left: str) -> None:
    class Last(AgentMiddleware):
        @hook_config(can_jump_to=["end"])
        def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
            return {"jump_to": "end", "messages": [AIMessage(said)]}

    assert texts(ask(create_agent(Calling(), [], middleware=[Last(), govern()]), awaited)) == ["q", left]


@both
def test_a_judge_that_was_cut_off_lets_no_call_through(govern: Any, awaited: bool) -> None:
    cut = AIMessage(approve(), response_metadata={"finish_reason": "length"})
    tools = Tools()
    model = Calling(intellect=in_turn(calls(call("search", q="x")), "Ok."))
    judge = Fake(will=lambda asked: cut if '"tool"' in asked else approve())
    out = ask(create_agent(model, tools.of(), middleware=[govern(judge, ["search"], judge_calls=True)]), awaited)
    assert not tools.did
    assert texts(out)[-1] == "Ok."
