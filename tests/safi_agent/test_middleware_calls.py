"""Which calls an agent under SafiMiddleware makes, and what its model is told of the others."""

from typing import Annotated, Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ToolErrorMiddleware
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.messages.tool import InvalidToolCall
from pydantic import Field

from safi_agent import ToolRule
from tests.safi_agent.agents.calling import Calling, Tools, ask, both, call, calls, records, texts
from tests.safi_agent.fakes import in_turn


@both
def test_a_call_that_is_not_allowed_is_not_made_and_the_model_is_told(
    govern: Any, tmp_path: Any, awaited: bool
) -> None:
    tools, middleware = Tools(), govern(allowed_tools=["search"])
    model = Calling(intellect=in_turn(calls(call("pay", amount=5)), "I may not pay."))
    out = ask(create_agent(model, tools.of(), middleware=[middleware]), awaited)
    assert tools.did == []
    told = model.asked("intellect")[1][-1]
    assert isinstance(told, ToolMessage)
    assert told.status == "error"
    assert told.text == "This call was not made. This tool is not allowed here."
    assert texts(out)[-1] == "I may not pay."
    middleware.drain()
    (record,) = records(tmp_path)
    denied = {"name": "pay", "decision": "violation", "code": "tool_not_allowed"}
    assert record["metadata"]["tools"] == [denied]


def test_none_leaves_tools_unchecked_and_an_empty_list_allows_none(govern: Any) -> None:
    for allowed, did, seen in ((None, ["search x"], ["search", "pay"]), ([], [], [])):
        tools, model = Tools(), Calling(intellect=in_turn(calls(call("search", q="x")), "Done."))
        ask(create_agent(model, tools.of(), middleware=[govern(allowed_tools=allowed)]))
        assert tools.did == did
        assert [name for name in model.bound] == seen


def test_the_model_is_told_only_of_tools_that_it_may_call_those_of_its_provider_too(govern: Any) -> None:
    model = Calling()
    provided = [{"type": "web_search", "name": "web_search"}, {"type": "code_interpreter"}]
    model._bound[:] = []
    agent = create_agent(model, [*Tools().of(), *provided], middleware=[govern(allowed_tools=["pay", "web_search"])])
    ask(agent)
    assert model.bound == ["pay", "web_search"]


@both
def test_arguments_are_held_to_their_rules(govern: Any, awaited: bool) -> None:
    rule = ToolRule("pay", {"amount": Annotated[float, Field(gt=0, le=100)], "to": Literal["Ann", "Bo"]})
    tried = [{"amount": 712345678, "to": "Ann"}, {"amount": 5, "to": "Eve"}, {"amount": 5}, {"amount": 5, "to": "Bo"}]
    tools, middleware = Tools(), govern(allowed_tools=[rule])
    model = Calling(intellect=in_turn(*(calls(call("pay", f"{i}", **args)) for i, args in enumerate(tried)), "Done."))
    out = ask(create_agent(model, tools.of(), middleware=[middleware]), awaited)
    assert tools.did == ["pay 5 to Bo"]
    assert [m.status for m in out["messages"] if isinstance(m, ToolMessage)] == ["error", "error", "error", "success"]
    assert "to: missing, or not what is allowed." in texts(out)[4]
    assert "712345678" not in repr(out), "what was denied has left"


@pytest.mark.slow
@both
def test_calls_side_by_side_are_ruled_one_by_one(govern: Any, awaited: bool) -> None:
    tools, middleware = Tools(), govern(allowed_tools=["search"])
    made = [call("search", "a", q="x"), call("pay", "b", amount=1), call("search", "c", q="y"), call("nothing", "d")]
    model = Calling(intellect=in_turn(calls(*made), "Done."))
    out = ask(create_agent(model, tools.of(), middleware=[middleware]), awaited)
    assert sorted(tools.did) == ["search x", "search y"]
    said = {m.tool_call_id: (m.status, m.name) for m in out["messages"] if isinstance(m, ToolMessage)}
    assert said == {
        "a": ("success", "search"),
        "b": ("error", "pay"),
        "c": ("success", "search"),
        "d": ("error", "unknown_tool"),
    }


@both
def test_two_calls_of_one_id_are_both_denied(govern: Any, awaited: bool) -> None:
    tools, made = Tools(), [call("search", "a", q="x"), call("pay", "a", amount=1)]
    model = Calling(intellect=in_turn(calls(*made), "Done."))
    ask(create_agent(model, tools.of(), middleware=[govern()]), awaited)
    assert tools.did == []


@both
def test_arguments_that_cannot_be_read_are_said_to_the_model(govern: Any, awaited: bool) -> None:
    tools, middleware = Tools(), govern(allowed_tools=["search"])
    broken = InvalidToolCall(name="search", args='{"q": "sec', id="b", error="no JSON", type="invalid_tool_call")
    first = AIMessage("", invalid_tool_calls=[broken])
    model = Calling(intellect=in_turn(first, calls(call("search", q="x")), "Done."))
    out = ask(create_agent(model, tools.of(), middleware=[middleware]), awaited)
    assert "could not be read" in str(model.asked("intellect")[1][-1].text)
    assert tools.did == ["search x"]
    assert "sec" not in "".join(texts(out))


@both
def test_arguments_that_the_tools_own_schema_refuses_are_said_to_the_model(govern: Any, awaited: bool) -> None:
    tools, model = Tools(), Calling(intellect=in_turn(calls(call("pay", amount="much")), "Done."))
    out = ask(create_agent(model, tools.of(), middleware=[govern()]), awaited)
    assert tools.did == []
    assert out["messages"][2].status == "error"
    assert texts(out)[-1] == "Done."


@both
def test_a_tool_that_raises_leaves_no_turn_and_its_error_goes_to_who_catches_it(
    govern: Any, tmp_path: Any, awaited: bool
) -> None:
    def search(q: str) -> str:
        """Search."""
        raise OSError("the line is dead")

    middleware, replies = govern(), [calls(call("search", q="x")), "It did not work."]
    agent = create_agent(Calling(intellect=in_turn(*replies)), [search], middleware=[middleware])
    with pytest.raises(OSError, match="the line is dead"):
        ask(agent, awaited)
    assert middleware.drain() == 0
    assert records(tmp_path) == []
    catching = [ToolErrorMiddleware(on_error=lambda error, request: "It broke."), middleware]
    model = Calling(intellect=in_turn(*replies))
    assert texts(ask(create_agent(model, [search], middleware=catching), awaited))[-1] == "It did not work."
    assert "It broke." in str(model.asked("intellect")[1][-1].text)
    assert middleware.drain() == 1
