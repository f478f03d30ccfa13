"""Tools that are bound to a chain's model: what the Will approves leaves with the message, and nothing else."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from typer.testing import CliRunner

from safi_agent.cli import app
from safi_agent.serve import create_app
from safi_agent.tool_calls import bound_tools, without_tools
from tests.safi_agent.agents.calling import call, calls
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, in_turn
from tests.safi_agent.log_lines import lines
from tests.safi_agent.openai_server import Server, serving

TOOLS = [{"type": "function", "function": {"name": "search"}}, {"name": "pay", "input_schema": {}}]


@tool
def search(q: str) -> str:
    """Search."""
    return f"found {q}"


def bound(*replies: Any, **settings: Any) -> Any:
    """A model with the two tools, and the model inside it."""
    inner = Fake(intellect=in_turn(*replies), **settings)
    return inner.bind(tools=TOOLS, tool_choice="auto"), inner


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


def test_over_http_the_model_that_drafts_has_the_tools_and_the_judges_have_none(make: Any, server: Server) -> None:
    server.says["intellect"] = '{"q": "glass"}'
    model = ChatOpenAI(model="gpt-4o", base_url=server.url, api_key="k", max_retries=0)  # type: ignore[arg-type]
    safi = make(model.bind_tools([search], tool_choice="search"))
    message = safi.invoke("When is glass collected?")
    assert [(c["name"], c["args"], c["id"]) for c in message.tool_calls] == [("search", {"q": "glass"}, "1")]
    (drafting,), (ruling,) = server.asked("intellect"), server.asked("will")
    assert drafting["tools"][0]["function"]["name"] == "search"
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(ruling)
    assert ruling["response_format"]["type"] == "json_schema"
    assert '{"tool": "search", "arguments": {"q": "glass"}}' in ruling["messages"][1]["content"]
    assert "may make the tool call" in ruling["messages"][0]["content"]


def test_the_caller_makes_the_calls_and_the_answer_is_audited_with_the_results(make: Any, tmp_path: Path) -> None:
    model, inner = bound(calls(call("search", "a", q="glass"), text="Let me see."), "On Mondays.")
    safi = make(model)
    asked: list[Any] = [HumanMessage("When?")]
    step = safi.invoke(asked)
    assert (step.text, step.tool_calls) == ("Let me see.", [call("search", "a", q="glass")])
    assert step.response_metadata["safi"]["auditStatus"] == "none"
    results = [ToolMessage(search.invoke(one["args"]), tool_call_id=one["id"]) for one in step.tool_calls]
    answer = safi.invoke([*asked, step, *results])
    assert (answer.text, answer.tool_calls) == ("On Mondays.", [])
    assert safi.drain() == 1
    first, second = lines(tmp_path / "log.json")
    assert first["finalOutput"] == 'Let me see.\n\n{"tool": "search", "arguments": {"q": "glass"}}'
    assert (first["auditReason"], first["auditStatus"], second["auditReason"]) == ("tool_calls", "none", "all")
    judged = str(inner.asked("conscience")[0][1].text)
    assert 'ai: Let me see. called search({"q": "glass"})\ntool: found glass' in judged
    shown = CliRunner().invoke(app, ["show", first["turnId"], "--store", safi.store], env={"COLUMNS": "200"})
    assert "not audited: a call of a tool" in shown.output


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (calls(call("delete", path="/")), "tool_unknown"),
        (calls(call("search", "a", q="x"), call("delete", "b")), "tool_unknown"),
        (calls(call("search", "a", q="x"), call("pay", "a", amount=1)), "call_id"),
        (calls(call("search", q=float("nan"))), "arguments_unreadable"),
        (
            AIMessage("", invalid_tool_calls=[{"name": "pay", "args": '{"amount": ', "id": "1", "error": None}]),
            "arguments_unreadable",
        ),
        (calls(call("search", q="this is forbidden")), "forbidden_pattern"),
        (calls(call("search", q="\u202eforbid\u200bden")), "forbidden_pattern"),
    ],
)
def test_a_call_that_a_rule_refuses_does_not_leave(make: Any, tmp_path: Path, reply: Any, code: str) -> None:
    model, inner = bound(reply)
    safi = make(model, THREE.model_copy(update={"forbidden": ("forbidden",)}))
    message = safi.invoke("q")
    assert (message.text, message.tool_calls) == ("No.", [])
    assert not inner.asked("will")
    safi.drain()
    (record,) = lines(tmp_path / "log.json")
    assert (record["flags"][-1], record["auditReason"]) == (code, "refused")
    assert "delete" not in json.dumps(record)


def test_a_call_that_the_judge_refuses_does_not_leave_in_shadow_mode_either(make: Any, tmp_path: Path) -> None:
    reply = calls(call("pay", amount=500), text="I will pay.")
    refused = make(bound(reply, will=VIOLATION)[0]).invoke("q")
    assert (refused.text, refused.tool_calls) == ("No.", [])
    safi = make(bound(reply, will=VIOLATION)[0], will_mode="shadow")
    message = safi.invoke("q")
    assert (message.text, message.tool_calls) == ("I will pay.", [])
    assert message.response_metadata["safi"]["flags"] == ["shadow"]
    safi.drain()
    record = lines(tmp_path / "log.json")[-1]
    assert (record["finalOutput"], record["auditReason"]) == ("I will pay.", "all")
    assert "500" in record["intellectDraft"]


def test_without_bound_tools_a_call_is_refused(make: Any) -> None:
    message = make(Fake(intellect=calls(call("search", q="x"), text="Fine."))).invoke("q")
    assert (message.text, message.tool_calls) == ("No.", [])


def test_an_id_that_could_be_a_text_is_replaced(make: Any) -> None:
    (made,) = make(bound(calls(call("search", "a secret text", q="x")))[0]).invoke("q").tool_calls
    assert made["id"].startswith("call-")
    assert "secret" not in json.dumps(made)


def test_disclaimers_belong_to_answers(make: Any) -> None:
    values = THREE.model_copy(update={"disclaimers": ("Not advice.",)})
    safi = make(bound(calls(call("search", q="x")), "Yes.")[0], values)
    assert [safi.invoke("q").text for _ in range(2)] == ["", "Yes.\n\nNot advice."]


def test_a_repeated_turn_has_the_same_calls_and_erased_ones_are_in_no_file(make: Any, tmp_path: Path) -> None:
    safi = make(bound(calls(call("search", "a", q="CANARY")), "Other.")[0], redact=None)
    config = {"configurable": {"safi_turn_id": "t"}}
    first, again = (safi.invoke("q", config) for _ in range(2))
    assert first.tool_calls == again.tool_calls == [call("search", "a", q="CANARY")]
    safi.drain()
    stored = lambda: b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())  # noqa: E731
    assert b"CANARY" in stored()
    assert safi.erase(["t"]).unfinished == ()
    assert b"CANARY" not in stored()


def test_stored_calls_are_redacted_and_those_that_leave_are_not(make: Any, tmp_path: Path) -> None:
    safi = make(bound(calls(call("search", "a", q="Ada")))[0], redact=lambda text: text.replace("Ada", "[name]"))
    config = {"configurable": {"safi_turn_id": "t"}}
    assert [safi.invoke("q", config).tool_calls[0]["args"]["q"] for _ in range(2)] == ["Ada", "[name]"]
    safi.drain()
    assert b"Ada" not in b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_tools_are_found_in_wrappers_and_taken_away_from_judges() -> None:
    model, inner = bound("x")
    field = {"delay": ConfigurableField(id="delay")}
    for wrapped in (
        model.with_retry(),
        model.with_config(tags=["a"]),
        Fake().with_fallbacks([model]),
        model.with_fallbacks([Fake()]),
        RunnableLambda(lambda given: given) | model,
        Fake().configurable_fields(**field).bind(tools=TOOLS),
        Fake().bind(functions=[{"name": "search"}, {"name": "pay"}], stop=["."]),
    ):
        assert bound_tools(wrapped) == {"search", "pay"}
        assert bound_tools(without_tools(wrapped)) == frozenset()
    kept = without_tools(Fake().bind(tools=TOOLS, stop=["."]))
    assert kept.kwargs == {"stop": ["."]}  # type: ignore[attr-defined]
    assert without_tools(inner) is inner


def test_a_service_refuses_a_model_with_tools(make: Any) -> None:
    with pytest.raises(ValueError, match=r"chain: expected a model without bound tools, .*; got pay, search\."):
        create_app(make(bound("x")[0]))


def test_streamed_and_awaited_the_calls_leave(make: Any) -> None:
    safi = make(bound(calls(call("search", "a", q="x")))[0])
    (chunk,) = list(safi.stream("q"))
    assert chunk.tool_calls == asyncio.run(safi.ainvoke("q")).tool_calls == [call("search", "a", q="x")]
