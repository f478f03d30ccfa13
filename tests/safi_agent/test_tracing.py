"""What tracers of the operator see: a turn as a tree, and its audit as another that has the same turn id."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tracers import BaseTracer, LangChainTracer
from langchain_core.tracers.context import tracing_v2_enabled
from langsmith import run_trees, traceable, tracing_context
from langsmith.utils import get_env_var

from tests.safi_agent.agents.calling import Calling, Tools, ask, call, calls
from tests.safi_agent.fakes import VIOLATION, Fake, in_turn
from tests.safi_agent.langsmith_client import Kept
from tests.safi_agent.observers import Watcher, secret
from tests.safi_agent.reachable_objects import found

SPANS = """
import json, sys
from langchain.agents import create_agent
from langchain_core.tracers.langchain import wait_for_all_tracers
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

kept, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)

from safi_agent import SafiMiddleware
from tests.safi_agent.agents.calling import Calling, Tools, ask, call, calls
from tests.safi_agent.fakes import THREE, Fake, in_turn

with SafiMiddleware(THREE, model=Fake(), store=None, log=None) as middleware:
    model = Calling(intellect=in_turn(calls(call("search", q="x")), "Ok."))
    out = ask(create_agent(model, Tools().of(), middleware=[middleware]))
wait_for_all_tracers()
names = {span.context.span_id: span.name for span in kept.get_finished_spans()}
rows = [
    (span.name, names.get(span.parent.span_id) if span.parent else None,
     span.attributes.get("langsmith.metadata.safi_turn_id"))
    for span in kept.get_finished_spans()
]
print(json.dumps([out["messages"][-1].response_metadata["safi"]["turnId"], rows]))
"""


class Trees(BaseTracer):
    """Keeps each run that has no parent, with all below it."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Any] = []

    def _persist_run(self, run: Any) -> None:
        self.roots.append(run)

    @property
    def in_order(self) -> list[Any]:
        """The audit last: it runs beside the end of its turn, and may end first."""
        return sorted(self.roots, key=lambda run: bool(run.name == "safi.audit"))


def tree(run: Any) -> Any:
    below = [tree(child) for child in run.child_runs]
    return (run.name, below) if below else run.name


def turn_ids(run: Any) -> set[str]:
    own = run.extra.get("metadata", {}).get("safi_turn_id")
    return set.union({own} if own else set(), *(turn_ids(child) for child in run.child_runs))


def test_a_turn_of_the_chain_is_a_tree_and_its_audit_another_of_the_same_turn(make: Any) -> None:
    trees = Trees()
    safi = make(store=None, log=None, tracers=[trees])
    told = safi.invoke("q", {"callbacks": [trees]}).response_metadata["safi"]
    safi.drain()
    turn, audit = trees.in_order
    faculties = ["Release", ("Will", ["Fake"]), ("Intellect", ["Fake"])][::-1]
    assert tree(turn) == ("SafiChain", [("RunnableSequence", faculties)])
    assert tree(audit) == ("safi.audit", ["Fake"])
    assert turn_ids(turn) == turn_ids(audit) == {told["turnId"]}


def test_a_run_of_an_agent_is_a_tree_and_its_audit_another_of_the_same_turn(govern: Any) -> None:
    trees = Trees()
    middleware = govern(store=None, log=None, tracers=[trees])
    model = Calling(intellect=in_turn(calls(call("search", q="x")), "Ok."))
    out = ask(create_agent(model, Tools().of(), middleware=[middleware]), config={"callbacks": [trees]})
    middleware.drain()
    run, audit = trees.in_order
    asked = ("Intellect", [("model", ["Calling"])])
    assert tree(run) == (
        "LangGraph",
        [
            "SafiMiddleware.before_agent",
            ("model", [asked]),
            ("tools", ["search"]),
            ("model", [asked, ("Will", ["Fake"]), "Release"]),
            "SafiMiddleware.after_agent",
        ],
    )
    assert tree(audit) == ("safi.audit", ["Fake"])
    assert turn_ids(run) == turn_ids(audit) == {out["messages"][-1].response_metadata["safi"]["turnId"]}


def test_a_callers_tracer_sees_no_more_than_the_nodes(govern: Any) -> None:
    trees = Trees()
    agent = create_agent(Calling(), [], middleware=[govern(Fake(), store=None, log=None)])
    ask(agent, config={"callbacks": [trees]})
    (run,) = trees.roots
    assert "model" in tree(run)[1], "the model's node has nothing below it"
    assert turn_ids(run) == set()


@pytest.mark.slow
def test_langsmith_sends_both_to_opentelemetry() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")
    names = ("LANGSMITH_TRACING", "LANGSMITH_OTEL_ENABLED", "LANGSMITH_OTEL_ONLY")
    env = {**os.environ, **dict.fromkeys(names, "true"), "LANGSMITH_API_KEY": "none"}
    env |= {"LANGSMITH_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": "."}
    command = [sys.executable, "-c", SPANS]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    turn_id, rows = json.loads(done.stdout.splitlines()[-1])
    spans = {(name, parent): own for name, parent, own in rows}
    for name, parent in (
        ("SafiMiddleware.wrap_model_call", "model"),
        ("Intellect", "SafiMiddleware.wrap_model_call"),
        ("Will", "SafiMiddleware.wrap_model_call"),
        ("Release", "SafiMiddleware.wrap_model_call"),
        ("search", "SafiMiddleware.wrap_tool_call"),
        ("safi.audit", "invoke_agent Conscience"),
    ):
        assert (name, parent) in spans
    assert (
        spans["Intellect", "SafiMiddleware.wrap_model_call"]
        == spans["safi.audit", "invoke_agent Conscience"]
        == turn_id
    )


def both_ways(safi: Any, agent: Any, config: Any = None) -> None:
    for target, given in ((safi, "q"), (agent, {"messages": [HumanMessage("q")]})):
        target.invoke(given, config)
        asyncio.run(target.ainvoke(given, config))


def refusing(make: Any, govern: Any, word: str, **settings: Any) -> tuple[Any, Any]:
    """A chain and an agent whose drafts and rulings have the word and are refused."""
    text, ruling = f"Well: {word}.<reflection>{word}</reflection>", VIOLATION.replace("it breaks", f"{word} breaks")
    safi = make(Fake(intellect=lambda _: text, will=lambda _: ruling), store=None, log=None, **settings)
    middleware = govern(Fake(will=lambda _: ruling), store=None, log=None, **settings)
    return safi, create_agent(Calling(intellect=lambda _: text), [], middleware=[middleware])


def test_a_callers_tracer_of_langsmith_is_not_the_operators(make: Any, govern: Any) -> None:
    word, client = secret(), Kept()
    tracer = LangChainTracer(client=client)
    both_ways(*refusing(make, govern, word), {"callbacks": [tracer]})
    assert "SafiChain" in repr(client.sent), "the tracer was not there"
    assert "No." in repr(client.sent)
    assert word not in repr(client.sent)
    assert found((tracer.run_map, tracer.latest_run), word, __file__) == []


@pytest.mark.parametrize("around", ["tracing_v2_enabled", "tracing_context", "traceable"])
def test_what_a_caller_traces_in_a_context_of_its_own_ends_at_the_chain(make: Any, govern: Any, around: str) -> None:
    word, client = secret(), Kept()
    safi, agent = refusing(make, govern, word)
    if around == "tracing_v2_enabled":
        with tracing_v2_enabled(client=client):
            both_ways(safi, agent)
    else:
        call_both = traceable(both_ways, client=client) if around == "traceable" else both_ways
        with tracing_context(enabled=True, client=client):
            call_both(safi, agent)
    assert "SafiChain" in repr(client.sent), "nothing was traced"
    assert word not in repr(client.sent)


def test_a_handler_that_says_it_equals_the_operators_is_not_the_operators(make: Any, govern: Any) -> None:
    class Equal(Watcher):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = object.__hash__

    word, operators, callers = secret(), Watcher(), Equal()
    both_ways(*refusing(make, govern, word, tracers=[operators]), {"callbacks": [callers]})
    assert word in repr(operators.seen)
    assert word not in repr(callers.seen)


def test_langsmiths_tracer_among_the_operators_gets_what_happens_inside(make: Any, govern: Any) -> None:
    word, operators, callers = secret(), Kept(), Kept()
    safi, agent = refusing(make, govern, word, tracers=[LangChainTracer(client=operators)])
    both_ways(safi, agent, {"callbacks": [LangChainTracer(client=callers)]})
    assert word in repr(operators.sent)
    assert word not in repr(callers.sent)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """LangSmith's client of the process, turned on by the environment."""
    client = Kept()
    monkeypatch.setattr(run_trees, "_CLIENT", client)
    with monkeypatch.context() as patch:
        patch.setenv("LANGSMITH_TRACING", "true")
        get_env_var.cache_clear()
        yield client
    get_env_var.cache_clear()


@pytest.mark.parametrize("of_caller", [False, True])
def test_what_the_environment_turned_on_is_the_operators(
    make: Any, govern: Any, operators: Kept, of_caller: bool
) -> None:
    word, callers = secret(), Kept()
    tracer = LangChainTracer(client=callers)
    both_ways(*refusing(make, govern, word), {"callbacks": [tracer]} if of_caller else None)
    assert word in repr(operators.sent), "the environment's tracer got nothing of what happens inside"
    assert word not in repr(callers.sent)


def test_a_callers_tracer_object_gets_nothing_where_the_environment_traces_to_the_same_place(
    make: Any, govern: Any, operators: Kept
) -> None:
    word, tracer = secret(), LangChainTracer()
    assert tracer.client is operators
    both_ways(*refusing(make, govern, word), {"callbacks": [tracer]})
    assert word in repr(operators.sent)
    assert found((tracer.run_map, tracer.latest_run), word, __file__) == []


def test_handlers_on_a_model_object_are_the_operators(make: Any) -> None:
    word, watcher = secret(), Watcher()
    model = Fake(intellect=lambda _: f"Well: {word}.", will=VIOLATION, callbacks=[watcher])
    make(model, store=None, log=None).invoke("q", {"callbacks": [Watcher()]})
    assert word in repr(watcher.seen)


def test_the_callers_config_is_as_it_was(make: Any) -> None:
    word, watcher = secret(), Watcher()
    safi = make(Fake(intellect=lambda _: f"Well: {word}.", will=VIOLATION), store=None, log=None, tracers=[Watcher()])
    config: Any = {"callbacks": [watcher], "metadata": {"a": [1]}, "configurable": {"mine": {}}, "tags": ["t"]}
    safi.invoke("q", config)
    asyncio.run(safi.ainvoke("q", config))
    assert config == {"callbacks": [watcher], "metadata": {"a": [1]}, "configurable": {"mine": {}}, "tags": ["t"]}
    assert found(config, word, __file__) == []
