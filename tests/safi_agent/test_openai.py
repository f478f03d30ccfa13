"""Through the real ChatOpenAI, against a server on loopback, well-behaved and not."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain.chat_models import init_chat_model
from langchain_openai import ChatOpenAI

from safi_agent import IntellectError, SafiChain, create_safi_chain
from tests.safi_agent.fakes import GATED, THREE, VIOLATION, approve, in_turn, ledger
from tests.safi_agent.openai_server import HANG, SAYS, Server, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    with serving() as one:
        yield one


@pytest.fixture
def server(served: Server) -> Server:
    """As it is at first: the clients of ChatOpenAI are made once for an address."""
    served.says, served.requests = dict(SAYS), []
    return served


def patience(reply: Any) -> float:
    """Seconds that a client waits for this reply: few where it never comes."""
    return 0.3 if reply is HANG else 60


def chat(server: Server, **settings: Any) -> ChatOpenAI:
    given: dict[str, Any] = {"model": "gpt-4o", "base_url": server.url, "api_key": "k", "max_retries": 0, "timeout": 60}
    return ChatOpenAI(**(given | settings))


def last(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "log.json").read_text().splitlines()[-1]))


def test_an_answer_its_ruling_and_its_audit_come_over_http(make: Any, server: Server, tmp_path: Path) -> None:
    server.says["intellect"] = "Yes.\n<reflection>r</reflection>"
    safi = make(chat(server))
    message = safi.invoke("Why?")
    assert message.content == "Yes."
    assert message.usage_metadata["total_tokens"] == 24
    assert safi.drain() == 1
    record = last(tmp_path)
    assert (record["spiritScore"], record["auditStatus"]) == (7, "complete")
    assert set(record["models"].values()) == {"gpt-4o"}
    formats = [server.asked(role)[0].get("response_format", {}).get("type") for role in ("will", "conscience")]
    assert formats == ["json_schema", "json_schema"]
    assert "response_format" not in server.asked("intellect")[0]


def test_by_the_default_name_with_a_key(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with create_safi_chain(values=THREE, store=None, log=tmp_path / "log.json") as safi:
        assert safi.invoke("Why?").content == "An answer."
    assert [request["model"] for _, request in server.requests] == ["gpt-4o"] * 3
    assert [r.get("temperature") for _, r in server.requests] == [None, 0, 0]


def test_awaited_the_audits_do_not_touch_the_clients_of_the_callers_loop(make: Any, server: Server) -> None:
    async def turns() -> list[str]:
        async with httpx.AsyncClient() as client:
            safi = make(chat(server, http_async_client=client))
            said = []
            for _ in range(4):
                said.append(str((await safi.ainvoke("Why?")).text))
                assert await safi.adrain() == 1
            said += [str(m.text) for m in await safi.abatch(["Why?"] * 8)]
            assert await safi.adrain() == 8
            return said

    assert asyncio.run(turns()) == ["An answer."] * 12


@pytest.mark.parametrize("method", ["function_calling", "json_mode"])
def test_a_judge_may_answer_by_a_tool_call(server: Server, make: Any, tmp_path: Path, method: str) -> None:
    class ByMethod(ChatOpenAI):
        def with_structured_output(self, schema: Any = None, **kwargs: Any) -> Any:
            return super().with_structured_output(schema, **{**kwargs, "method": method})

    model = ByMethod(model="m", base_url=server.url, api_key="k", max_retries=0)
    safi = make(model)
    assert safi.invoke("Why?").content == "An answer."
    safi.drain()
    assert last(tmp_path)["auditStatus"] == "complete"
    assert ("tools" in server.asked("will")[0]) == (method == "function_calling")


@pytest.mark.slow
def test_streamed_it_leaves_whole_and_only_once_it_was_approved(make: Any, server: Server) -> None:
    server.says["will"] = in_turn(approve(), VIOLATION)
    safi = make(chat(server, streaming=True))
    assert [c.content for c in safi.stream("Why?")] == ["An answer."]

    async def events() -> list[Any]:
        async with httpx.AsyncClient() as client:
            awaited = make(chat(server, streaming=True, http_async_client=client))
            return [e async for e in awaited.astream_events("Why?", version="v2")]

    seen = repr(asyncio.run(events()))
    assert "An answer." not in seen
    assert "No." in seen


@pytest.mark.parametrize("status", [401, 429, 503])
def test_an_intellect_that_gets_an_error_is_an_error(make: Any, server: Server, status: int) -> None:
    server.says["intellect"] = status
    with pytest.raises(IntellectError, match=f"status {status}"):
        make(chat(server)).invoke("Why?")


@pytest.mark.parametrize("reply", [429, 500, HANG, b"not json", b"{}", "", "approve"])
def test_a_will_that_gets_nonsense_refuses(make: Any, server: Server, reply: Any) -> None:
    server.says["will"] = reply
    assert make(chat(server, timeout=patience(reply))).invoke("Why?").content == "No."


def test_a_server_that_knows_no_schema_is_asked_in_plain_words(make: Any, server: Server, tmp_path: Path) -> None:
    refused = (400, "This response_format type is unavailable now")
    server.says["will"] = lambda request: refused if "response_format" in request else approve(["No Harm"])
    server.says["conscience"] = lambda request: refused if "response_format" in request else ledger(GATED)
    safi = make(chat(server), GATED)
    assert safi.invoke("Why?").content == "An answer."
    safi.drain()
    assert last(tmp_path)["auditStatus"] == "complete"


@pytest.mark.parametrize("refuses", [("temperature",), ("temperature", "response_format")])
def test_a_judge_by_name_whose_server_refuses_what_is_usual_rules_all_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: tuple[str, ...]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)

    def reply(role: str) -> Any:
        said = server.says[role]
        errors = [(400, f"Unsupported parameter: '{name}' is not supported with this model.") for name in refuses]
        return lambda request: next((e for n, e in zip(refuses, errors, strict=True) if n in request), said)

    server.says = {role: reply(role) for role in server.says}
    with create_safi_chain("openai:o3-mini", THREE, store=None, log=tmp_path / "log.json") as safi:
        for _ in range(2):
            assert safi.invoke("Why?").content == "An answer."
            assert safi.drain() == 1
    assert last(tmp_path)["auditStatus"] == "complete"
    assert len(server.asked("will")) == len(server.asked("conscience")) == len(refuses) + 2
    assert {"temperature", "response_format"} & set(server.asked("will")[-1]) == {"response_format"} - set(refuses)


@pytest.mark.parametrize("fault", [400, (400, "maximum context length is 10 tokens; reduce the messages or functions")])
def test_an_error_about_something_else_is_no_second_call(make: Any, server: Server, fault: Any) -> None:
    server.says["will"] = fault
    assert make(chat(server)).invoke("Why?").content == "No."
    assert len(server.asked("will")) == 1


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ({"content": approve(), "finish_reason": "length"}, "judge_unclear"),
        ({"content": approve(), "finish_reason": "content_filter"}, "judge_unclear"),
        (f"Here you are: {approve()}", "judge_unclear"),
        (500, "judge_failed"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_ruling_that_is_cut_off_or_quoted_is_unclear_and_a_judge_that_is_down_has_failed(
    make: Any, server: Server, tmp_path: Path, reply: Any, code: str, streaming: bool
) -> None:
    server.says["will"] = reply
    safi = make(chat(server, streaming=streaming))
    assert safi.invoke("Why?").content == "No."
    safi.drain()
    assert last(tmp_path)["flags"] == [code]


@pytest.mark.parametrize("refuse", [False, True])
def test_half_an_answer_is_flagged_and_refused_where_that_is_asked_for(
    make: Any, server: Server, tmp_path: Path, refuse: bool
) -> None:
    server.says["intellect"] = {"content": "The dose is", "finish_reason": "length"}
    safi = make(chat(server), refuse_truncated=refuse)
    assert safi.invoke("Why?").content == ("No." if refuse else "The dose is")
    safi.drain()
    assert last(tmp_path)["flags"] == ["draft_truncated"]


def test_the_record_names_the_models_that_answered(make: Any, server: Server, tmp_path: Path) -> None:
    server.says["intellect"] = {"content": "Yes.", "model": "gpt-4o-2024-11-20"}
    server.says["will"] = {"content": approve(), "model": "gpt-4o-mini-2024"}
    model = init_chat_model(temperature=0, base_url=server.url, api_key="k")
    safi = make(model, conscience_model=chat(server))
    told = safi.invoke("Why?", {"configurable": {"model": "openai:gpt-4o"}}).response_metadata["safi"]["models"]
    safi.drain()
    named = {"intellect": "gpt-4o-2024-11-20", "will": "gpt-4o-mini-2024", "conscience": "gpt-4o"}
    assert told == last(tmp_path)["models"] == named
    assert "response_format" in server.asked("will")[0]


def test_an_empty_object_in_json_mode_is_asked_for_again_without_it(make: Any, server: Server, tmp_path: Path) -> None:
    server.says["conscience"] = lambda request: "{}" if "response_format" in request else ledger()
    safi = make(chat(server))
    safi.invoke("Why?")
    safi.drain()
    assert last(tmp_path)["auditStatus"] == "complete"
    assert ["response_format" in r for r in server.asked("conscience")] == [True, False]


@pytest.mark.parametrize("fault", [429, 500, HANG, b"not json", '{"ledger": [{"value": "Truth"'])
def test_an_audit_that_meets_a_fault_is_tried_again(make: Any, server: Server, tmp_path: Path, fault: Any) -> None:
    server.says["conscience"] = in_turn(fault, fault, ledger())
    safi = make(chat(server, timeout=patience(fault)))
    safi.invoke("Why?")
    assert safi.drain() == 1
    assert last(tmp_path)["auditStatus"] == "complete"
    assert len(server.asked("conscience")) == 3


def test_an_audit_that_never_works_is_failed_and_flagged_and_moves_nothing(
    make: Any, server: Server, tmp_path: Path
) -> None:
    server.says["conscience"] = in_turn(ledger(), 500)
    alerts: list[Any] = []
    safi: SafiChain = make(chat(server), hooks=[alerts.append])
    safi.invoke("a")
    safi.drain()
    mu = last(tmp_path)["mu"]
    safi.invoke("b")
    assert safi.drain() == 1
    record = last(tmp_path)
    assert (record["auditStatus"], record["spiritScore"], record["drift"]) == ("failed", None, None)
    assert record["flags"] == ["audit_failed", "review"]
    assert (record["mu"], record["muTurn"]) == (mu, 1)
    assert "3 attempts" in record["spiritReflection"]
    assert [a.kind for a in alerts] == ["audit_failed", "review"]
