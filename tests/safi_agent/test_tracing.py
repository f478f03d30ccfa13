"""What tracers of the operator see: a turn as a tree, and its audit as another that has the same turn id."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tracers import BaseTracer

from tests.safi_agent.agents.calling import Calling, Tools, ask, call, calls
from tests.safi_agent.fakes import Fake, in_turn

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
    turn, audit = trees.roots
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
    run, audit = trees.roots
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
        ("safi.audit", None),
    ):
        assert (name, parent) in spans
    assert spans["Intellect", "SafiMiddleware.wrap_model_call"] == spans["safi.audit", None] == turn_id
