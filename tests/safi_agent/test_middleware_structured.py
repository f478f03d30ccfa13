"""Answers that are no plain text: in a schema, or a tool's result."""

import json
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from pydantic import BaseModel

from safi_agent import IntellectError
from tests.safi_agent.agents.calling import Calling, Tools, ask, both, call, calls, on_words, records, texts
from tests.safi_agent.fakes import Fake, in_turn
from tests.safi_agent.reachable_objects import found


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


WEATHER = call("Weather", "w", city="Bern", degrees=7)


@both
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
@pytest.mark.parametrize("refused", [False, True])
def test_structured_output_is_an_answer(
    govern: Any, tmp_path: Any, awaited: bool, strategy: Any, refused: bool
) -> None:
    reply = calls(WEATHER) if strategy is ToolStrategy else json.dumps(WEATHER["args"])
    judge, model = Fake(will=on_words("Bern" if refused else "Rome")), Calling(intellect=reply)
    middleware = govern(judge)
    out = ask(create_agent(model, [], response_format=strategy(Weather), middleware=[middleware]), awaited)
    assert len(model.asked("intellect")) == 1
    assert "reflection" not in str(model.asked("intellect")[0][0].text)
    assert middleware.drain() == (not refused)
    (record,) = records(tmp_path)
    if refused:
        assert out.get("structured_response") is None
        assert texts(out) == ["q", "No."]
        assert "Bern" not in repr(out)
    else:
        assert out["structured_response"] == Weather(city="Bern", degrees=7)
        assert json.loads(record["finalOutput"]) == WEATHER["args"]


@both
def test_structured_output_that_does_not_fit_is_tried_again(govern: Any, awaited: bool) -> None:
    wrong = call("Weather", "v", city="Bern", degrees="warm")
    model = Calling(intellect=in_turn(calls(wrong), calls(WEATHER)))
    agent = create_agent(model, [], response_format=ToolStrategy(Weather), middleware=[govern()])
    assert ask(agent, awaited)["structured_response"] == Weather(city="Bern", degrees=7)
    refusing = govern(Fake(will=on_words("warm")))
    model = Calling(intellect=in_turn(calls(wrong), calls(WEATHER)))
    out = ask(create_agent(model, [], response_format=ToolStrategy(Weather), middleware=[refusing]), awaited)
    assert texts(out) == ["q", "No."]


@both
def test_structured_output_that_cannot_be_read_is_an_error_without_its_words(govern: Any, awaited: bool) -> None:
    agent = create_agent(
        Calling(intellect="secret words"), [], response_format=ProviderStrategy(Weather), middleware=[govern()]
    )
    with pytest.raises(IntellectError) as caught:
        ask(agent, awaited)
    assert found(caught.value, "secret", __file__) == []


@both
@pytest.mark.parametrize("refused", [False, True])
def test_a_result_that_is_the_answer_is_governed_as_one(
    govern: Any, tmp_path: Any, awaited: bool, refused: bool
) -> None:
    tools = Tools()
    model = Calling(intellect=calls(call("search", "a", q="x"), call("search", "b", q="y")))
    middleware = govern(Fake(will=on_words("found y" if refused else "nothing")))
    out = ask(create_agent(model, tools.of("search", return_direct=True), middleware=[middleware]), awaited)
    assert texts(out)[2:] == ["found x", "No." if refused else "found y"]
    assert middleware.drain() == 2 - refused
    assert len(records(tmp_path)) == 2


@both
def test_a_named_run_that_ended_with_a_tools_result_gives_it_again_and_the_tool_is_not_called_again(
    govern: Any, tmp_path: Any, awaited: bool
) -> None:
    tools, named = Tools(), {"configurable": {"safi_turn_id": "req-1"}}
    model = Calling(intellect=in_turn(*(calls(call("pay", f"a{i}", amount=1)) for i in range(3))))
    middleware = govern()
    agent = create_agent(model, tools.of("pay", return_direct=True), middleware=[middleware])
    outs = [ask(agent, awaited, "Pay.", named)["messages"] for _ in range(2)]
    assert [str(out[-1].text) for out in outs] == ["paid 1", "paid 1"]
    assert outs[0][-1].response_metadata == outs[1][-1].response_metadata
    assert tools.did == ["pay 1 to no one"]
    ask(agent, awaited, "Pay again.", named)
    assert len(tools.did) == 2
    assert middleware.drain() == len(records(tmp_path)) == 2


@both
def test_of_a_step_with_other_calls_a_result_is_not_the_runs_answer(govern: Any, tmp_path: Any, awaited: bool) -> None:
    tools, named = Tools(), {"configurable": {"safi_turn_id": "req-1"}}
    step = calls(call("search", "a", q="x"), call("pay", "b", amount=1))
    middleware = govern()
    given = [*tools.of("search"), *tools.of("pay", return_direct=True)]
    agent = create_agent(Calling(intellect=in_turn(step, "Done.")), given, middleware=[middleware])
    outs = [ask(agent, awaited, "Pay.", named)["messages"] for _ in range(2)]
    assert [str(out[-1].text) for out in outs] == ["Done.", "Done."]
    assert outs[1][-1].response_metadata["safi"]["turnId"] == outs[0][-1].response_metadata["safi"]["turnId"]
    by_answer = {record["finalOutput"]: record for record in records(tmp_path)} if middleware.drain() == 2 else {}
    assert set(by_answer) == {"paid 1", "Done."}
    assert by_answer["Done."]["turnId"] == by_answer["Done."]["metadata"]["agentRun"] != by_answer["paid 1"]["turnId"]
