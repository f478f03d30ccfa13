"""Spans of turns and faculties: their tree and attributes, and what they leave out."""

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from safi_agent import IntellectError, OutboxError, SafiError, ViolationError
from safi_agent.telemetry import spans
from safi_agent.telemetry.attributes import describe
from safi_agent.telemetry.spans import TraceScope, call_scope, faculty_span, turn_context, turn_span
from safi_agent.turn import Draft, Verdict
from tests.safi_agent.agents.calling import Calling, Tools, ask, call, calls
from tests.safi_agent.fakes import GATED, THREE, VIOLATION, Fake, approve, in_turn, ledger
from tests.safi_agent.observers import secret
from tests.safi_agent.reachable_objects import found, printed
from tests.safi_agent.telemetry.exported import Exported

TURN, INTELLECT, WILL = "invoke_workflow safi", "invoke_agent Intellect", "invoke_agent Will"
CONSCIENCE, SPIRIT = "invoke_agent Conscience", "Spirit"
USAGE: Any = {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}


def invoke(safi: Any, given: Any = "q", config: Any = None) -> Any:
    return safi.invoke(given, config)


def ainvoke(safi: Any, given: Any = "q", config: Any = None) -> Any:
    return asyncio.run(safi.ainvoke(given, config))


WAYS: list[Callable[..., Any]] = [invoke, ainvoke]
both_ways = pytest.mark.parametrize("invoked", WAYS)


def named(text: str, model: str = "m-1") -> AIMessage:
    """A reply with the name of its model and its usage."""
    return AIMessage(text, usage_metadata=USAGE, response_metadata={"model_name": model})


def id_of(message: Any) -> str:
    return str(message.response_metadata["safi"]["turnId"])


@both_ways
def test_a_turn_and_its_audit_are_one_trace(invoked: Callable[..., Any], make: Any, exported: Exported) -> None:
    safi = make()
    invoked(safi)
    safi.drain()
    assert exported.tree == {TURN: None, INTELLECT: TURN, WILL: TURN, CONSCIENCE: TURN, SPIRIT: TURN}
    assert len({span.context.trace_id for span in exported.spans}) == 1
    assert {span.kind for span in exported.spans} == {SpanKind.INTERNAL}
    assert {span.status.status_code for span in exported.spans} == {StatusCode.UNSET}


@both_ways
def test_it_is_a_child_of_the_callers_span_which_is_the_current_one_again(
    invoked: Callable[..., Any], make: Any, exported: Exported
) -> None:
    safi = make()
    with exported.tracers.get_tracer("app").start_as_current_span("request") as request:
        invoked(safi)
        assert trace.get_current_span() is request
    safi.drain()
    assert exported.tree[TURN] == "request"
    assert {span.context.trace_id for span in exported.spans} == {request.get_span_context().trace_id}


def test_the_attributes_of_an_approved_turn(make: Any, exported: Exported) -> None:
    model = Fake(
        intellect=named("An answer."),
        will=named(approve(), "m-2"),
        conscience=named(ledger(score=-1), "m-3"),
    )
    safi = make(model)
    turn = id_of(safi.invoke("q"))
    safi.drain()
    usage = {"gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 5}
    told = {span.name: dict(span.attributes or {}) for span in exported.spans}
    assert told == {
        TURN: {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": "safi",
            "gen_ai.response.id": f"safi-{turn}",
            "safi.value_set": "three",
            "safi.turn.id": turn,
            "safi.decision": "approve",
            "safi.rule": "judge",
        },
        INTELLECT: {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "Intellect",
            "gen_ai.request.model": "fake",
            "gen_ai.response.model": "m-1",
            **usage,
        },
        WILL: {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "Will",
            "gen_ai.request.model": "fake",
            "gen_ai.response.model": "m-2",
            "safi.decision": "approve",
            "safi.rule": "judge",
            **usage,
        },
        CONSCIENCE: {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "Conscience",
            "gen_ai.request.model": "fake",
            "gen_ai.response.model": "m-3",
            **usage,
        },
        SPIRIT: {
            "safi.turn.id": turn,
            "safi.value_set": "three",
            "safi.audit.status": "complete",
            "safi.score": 2,  # σ(−0.8) = 1.9
            "safi.flags": ("review",),
        },
    }


def test_one_call_for_each_value_adds_up_the_usage(make: Any, exported: Exported) -> None:
    safi = make(Fake(conscience=named(ledger())), conscience_calls="each")
    safi.invoke("q")
    safi.drain()
    attributes = exported.one(CONSCIENCE).attributes or {}
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (9, 15)


def test_drafts_and_their_agreement() -> None:
    assert describe(Draft("a", drafts=3, agreement=1.0)).attributes == {"safi.drafts": 3, "safi.agreement": 1.0}


@both_ways
@pytest.mark.parametrize("raises", [False, True])
def test_a_refusal_is_no_error(invoked: Callable[..., Any], raises: bool, make: Any, exported: Exported) -> None:
    safi = make(Fake(will=VIOLATION), raise_on_violation=raises)
    if raises:
        with pytest.raises(ViolationError):
            invoked(safi)
    else:
        invoked(safi)
    safi.drain()
    assert exported.tree == {TURN: None, INTELLECT: TURN, WILL: TURN}
    for name in (TURN, WILL):
        span = exported.one(name)
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes is not None
        assert "error.type" not in span.attributes
        assert (span.attributes["safi.decision"], span.attributes["safi.rule"]) == ("violation", "judge")


def test_the_rule_that_refused(make: Any, exported: Exported) -> None:
    values = THREE.model_dump() | {"forbidden": ["answer"]}
    make(values=values).invoke("q")
    assert (exported.one(TURN).attributes or {})["safi.rule"] == "forbidden_pattern"


@both_ways
def test_a_model_that_fails(invoked: Callable[..., Any], make: Any, exported: Exported) -> None:
    word = secret()
    safi = make(Fake(intellect=lambda _: ConnectionError(word)))
    with pytest.raises(IntellectError):
        invoked(safi)
    assert exported.tree == {TURN: None, INTELLECT: TURN}
    for span in exported.spans:
        assert (span.attributes or {})["error.type"] == "ConnectionError"
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description is None
        assert span.events == ()
    assert word not in exported.text


def test_a_judge_that_fails_is_told_from_a_violation(make: Any, exported: Exported) -> None:
    make(Fake(will=TimeoutError("down"))).invoke("q")
    attributes = exported.one(WILL).attributes or {}
    assert (attributes["error.type"], attributes["safi.rule"]) == ("judge_failed", "judge_failed")
    assert exported.one(WILL).status.status_code is StatusCode.ERROR


def test_an_invalid_input_and_a_failing_store(make: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    safi = make(store=None, log=None)
    with pytest.raises(TypeError):
        safi.invoke(3)
    monkeypatch.setattr(type(safi._auditor.store), "add_turn", lambda *_, **__: raise_(OutboxError("Full")))
    with pytest.raises(OutboxError):
        safi.invoke("q")
    assert [(span.attributes or {})["error.type"] for span in exported.named(TURN)] == [
        "TypeError",
        "safi_agent.errors.OutboxError",
    ]


def raise_(error: BaseException) -> Any:
    raise error


def test_an_answer_that_is_repeated_has_a_span_of_its_own_and_no_faculties(make: Any, exported: Exported) -> None:
    safi, config = make(), {"configurable": {"safi_turn_id": "order-7"}}
    safi.invoke("q", config)
    safi.drain()
    exported.clear()
    safi.invoke("q", config)
    assert exported.tree == {TURN: None}
    assert (exported.one(TURN).attributes or {})["safi.turn.id"] == "order-7"


def test_an_attempt_that_failed_and_the_one_that_did_not(make: Any, exported: Exported) -> None:
    safi = make(Fake(conscience=in_turn(ConnectionError("down"), ledger())))
    safi.invoke("q")
    safi.drain()
    told = [(span.attributes or {}).get("error.type") for span in exported.named(CONSCIENCE)]
    assert told == ["ConnectionError", None]


def test_a_failed_audit_and_its_repetition_are_in_the_trace_of_the_turn(make: Any, exported: Exported) -> None:
    safi = make(Fake(conscience=in_turn(*[ConnectionError("down")] * 3, ledger())))
    turn = id_of(safi.invoke("q"))
    safi.drain()
    failed = exported.one(SPIRIT)
    assert (failed.attributes or {})["error.type"] == "audit_failed"
    assert (failed.attributes or {})["safi.audit.status"] == "failed"
    assert failed.status.status_code is StatusCode.ERROR
    safi.reaudit([turn])
    safi.drain()
    assert [(span.attributes or {})["safi.audit.status"] for span in exported.named(SPIRIT)] == ["failed", "complete"]
    root = exported.one(TURN).context
    assert {(span.parent and span.parent.span_id, span.context.trace_id) for span in exported.named(SPIRIT)} == {
        (root.span_id, root.trace_id)
    }


# Agents


@pytest.mark.parametrize("awaited", [False, True])
def test_each_model_call_of_an_agent_is_a_turn_of_the_callers_trace(
    awaited: bool, govern: Any, exported: Exported
) -> None:
    middleware = govern(store=None, log=None)
    model = Calling(intellect=in_turn(calls(call("search", q="x")), "Ok."))
    agent = create_agent(model, Tools().of(), middleware=[middleware])
    with exported.tracers.get_tracer("app").start_as_current_span("request"):
        message = ask(agent, awaited=awaited)["messages"][-1]
    middleware.drain()
    first, second = exported.named(TURN)
    assert exported.tree == {
        "request": None,
        TURN: "request",
        INTELLECT: TURN,
        WILL: TURN,
        CONSCIENCE: TURN,
        SPIRIT: TURN,
    }
    assert "safi.turn.id" not in (first.attributes or {}), "its reply was a call, and no answer"
    assert (second.attributes or {})["safi.turn.id"] == id_of(message)
    parent = exported.one(SPIRIT).parent
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (second.context.trace_id, second.context.span_id)
    assert (exported.named(INTELLECT)[0].attributes or {})["gen_ai.request.model"] == "fake"


# Contents


def contents() -> dict[str, str]:
    """One secret for each kind of content."""
    return {kind: secret() for kind in ("prompt", "draft", "reflection", "reason", "finding", "key", "metadata")}


def filled(make: Any, words: dict[str, str], ruling: str, **settings: Any) -> Any:
    """A chain that has answered one turn with these words in it."""
    model = Fake(
        intellect=f"{words['draft']}\n<reflection>{words['reflection']}</reflection>",
        will=ruling.replace("fine", words["reason"]).replace("it breaks", words["reason"]),
        conscience=ledger().replace('"so"', json.dumps(words["finding"])),
    )
    safi = make(model, **settings)
    config = {"configurable": {"safi_key": words["key"]}}
    safi.invoke({"prompt": words["prompt"], "metadata": {"m": words["metadata"]}}, config)
    safi.drain()
    return safi


@pytest.mark.parametrize("ruling", [approve(), VIOLATION, "{}", "not JSON it breaks"])
def test_contents_are_left_out(ruling: str, make: Any, exported: Exported) -> None:
    words = contents()
    filled(make, words, ruling)
    assert exported.one(INTELLECT)
    assert [kind for kind, word in words.items() if word in exported.text] == []


@pytest.mark.parametrize("faculty", ["intellect", "will", "conscience"])
def test_texts_of_errors_are_left_out(faculty: str, make: Any, exported: Exported) -> None:
    word = secret()

    class Failure(Exception):
        pass

    safi = make(Fake(**{faculty: lambda _: Failure(word)}))
    with suppress(SafiError):
        safi.invoke("q")
    safi.drain()
    assert "error.type" in exported.text
    assert word not in exported.text


def test_contents_on_request(make: Any, exported: Exported) -> None:
    words = contents()
    filled(make, words, approve(), trace_contents=True)
    turn, intellect = exported.one(TURN).attributes or {}, exported.one(INTELLECT).attributes or {}

    def message(role: str, word: str) -> str:
        return json.dumps([{"role": role, "parts": [{"type": "text", "content": words[word]}]}])

    assert turn["gen_ai.input.messages"] == message("user", "prompt")
    assert turn["gen_ai.output.messages"] == message("assistant", "draft")
    assert turn["safi.memory_key"] == words["key"]
    assert intellect["gen_ai.output.messages"] == message("assistant", "draft")
    assert intellect["safi.reflection"] == words["reflection"]
    assert (exported.one(WILL).attributes or {})["safi.reason"] == words["reason"]
    assert {event.attributes["gen_ai.evaluation.explanation"] for event in exported.events} == {words["finding"]}
    assert words["metadata"] not in exported.text


def test_a_refused_draft_on_request(make: Any, exported: Exported) -> None:
    words = contents()
    filled(make, words, VIOLATION, trace_contents=True)
    assert words["draft"] in str((exported.one(INTELLECT).attributes or {})["gen_ai.output.messages"])
    assert '"No."' in str((exported.one(TURN).attributes or {})["gen_ai.output.messages"])


def test_a_chain_within_a_turn_does_not_inherit_the_request(make: Any, exported: Exported) -> None:
    word = secret()
    inner = make(Fake(intellect=word, will=VIOLATION), store=None, log=None)
    outer = make(Fake(intellect=lambda _: str(inner.invoke("q").text)), store=None, log=None, trace_contents=True)
    outer.invoke("q")
    assert exported.tree[TURN] in (None, INTELLECT)
    assert len(exported.named(TURN)) == 2
    assert word not in exported.text


@pytest.mark.parametrize("trace_contents", [False, True])
def test_no_error_that_leaves_leads_to_a_span_with_contents(
    make: Any, exported: Exported, trace_contents: bool
) -> None:
    word = secret()
    safi = make(Fake(intellect=lambda _: word, will=VIOLATION), raise_on_violation=True, trace_contents=trace_contents)
    for invoked in WAYS:
        with pytest.raises(ViolationError) as caught:
            invoked(safi)
        assert found(caught.value, word, __file__) == []
        assert word not in printed(caught.value, __file__)
    assert (word in exported.text) is trace_contents


# Other conditions


@both_ways
def test_an_sdk_that_fails_changes_nothing(
    invoked: Callable[..., Any], make: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(SpanProcessor):
        def on_start(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("start")

        def on_end(self, *_: Any) -> None:
            raise RuntimeError("end")

    provider = TracerProvider()
    for fails in ("on_start", "on_end"):
        one = Failing()
        monkeypatch.setattr(one, "on_end" if fails == "on_start" else "on_start", lambda *_, **__: None)
        provider.add_span_processor(one)
        monkeypatch.setattr(spans, "tracer", provider.get_tracer("failing"))
        safi = make(store=None, log=None)
        message = invoked(safi)
        assert message.text == "An answer."
        assert safi.audit(id_of(message)).score == 7


def test_a_trace_that_is_not_sampled_has_no_audit_either(
    make: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    safi = make()
    monkeypatch.setattr(spans, "tracer", TracerProvider(ParentBased(ALWAYS_OFF)).get_tracer("off"))
    safi.invoke("q")
    monkeypatch.setattr(spans, "tracer", exported.tracers.get_tracer("on"))
    safi.drain()
    assert [span.name for span in exported.spans] == []
    assert len(exported.events) == 3


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_turn_that_is_cancelled_leaves_no_span_behind(
    make: Any, exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()

    class Slow(Fake):
        async def _agenerate(self, *_: Any, **__: Any) -> Any:
            started.set()
            await asyncio.sleep(60)

    safi = make(Slow(), store=None, log=None)

    async def cancel() -> None:
        task = asyncio.ensure_future(safi.ainvoke("q"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not trace.get_current_span().get_span_context().is_valid

    asyncio.run(cancel())
    gc.collect()
    assert {(span.attributes or {})["error.type"] for span in exported.spans} == {"asyncio.exceptions.CancelledError"}
    assert "detach" not in caplog.text


def test_a_span_that_is_closed_in_another_context_ends(exported: Exported, caplog: pytest.LogCaptureFixture) -> None:
    def steps() -> Iterator[None]:
        with spans.open_span("n", {}, Context()):
            yield

    abandoned = steps()
    copy_context().run(next, abandoned)
    abandoned.close()
    assert exported.tree == {"n": None}
    assert caplog.records == []
    assert not trace.get_current_span().get_span_context().is_valid


def test_without_an_sdk_the_trace_context_of_the_caller_is_stored(make: Any) -> None:
    given = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}
    safi = make()
    with spans._current(turn_context(given)):
        turn = id_of(safi.invoke("q"))
    _, body = safi.find_turn(turn)
    assert body["trace"] == given
    _, body = safi.find_turn(id_of(safi.invoke("q")))
    assert "trace" not in body
    safi.drain()


def test_a_hard_gate_is_a_value_like_others(make: Any, exported: Exported) -> None:
    safi = make(Fake(will=approve(["No Harm"]), conscience=ledger(GATED)), GATED)
    safi.invoke("q")
    safi.drain()
    assert [event.attributes["gen_ai.evaluation.name"] for event in exported.events] == [
        "Truth",
        "Care",
        "Thrift",
        "No Harm",
    ]


@pytest.mark.parametrize("awaited", [False, True])
def test_a_ruling_on_a_tool_call_has_a_span(awaited: bool, govern: Any, exported: Exported) -> None:
    middleware = govern(Fake(), store=None, log=None, judge_calls=True)
    model = Calling(intellect=in_turn(calls(call("search", q="x")), "Ok."))
    ask(create_agent(model, Tools().of(), middleware=[middleware]), awaited)
    assert len(exported.named(WILL)) == 2, "of the call and of the answer"


def test_work_outside_of_a_turn_does_not_use_the_scope_of_a_surrounding_one(exported: Exported) -> None:
    word = secret()
    outer, inner = TraceScope("outer", {}, contents=True), TraceScope("inner", {}, contents=False)
    with turn_span(outer), call_scope(inner), faculty_span("Will") as span:
        assert span is not None
        span.set_result(Verdict("violation", word))
    assert exported.tree == {TURN: None, WILL: TURN}
    assert word not in exported.text
