"""Over OTLP/HTTP to a collector on loopback, also when another process makes the audit."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.docs.pages import blocks
from tests.safi_agent.fakes import VIOLATION, Fake, approve
from tests.safi_agent.observers import secret
from tests.safi_agent.telemetry.otlp_collector import Collector, Received, collector

ROOT = Path(__file__).parents[3]
TURN, SPIRIT, CONSCIENCE = "invoke_workflow safi", "Spirit", "invoke_agent Conscience"
PAGE = ROOT / "docs" / "howto" / "opentelemetry.md"
BEGINS = """
import sys, time

from opentelemetry import _logs, metrics, trace

from safi_agent import create_safi_chain
from tests.docs.pages import blocks
from tests.safi_agent.fakes import THREE, Fake


def flush():
    for provider in (trace.get_tracer_provider(), _logs.get_logger_provider(), metrics.get_meter_provider()):
        if hasattr(provider, "force_flush"):
            provider.force_flush()


store, conscience = sys.argv[1], Fake().conscience
settings = {"store": store, "log": None}
"""
ANSWERS = """
if store.startswith("postgresql"):
    settings["audit_mode"] = "worker"
else:
    conscience = lambda _: time.sleep(60)
safi = create_safi_chain(Fake(conscience=conscience), THREE, **settings)
with trace.get_tracer("app").start_as_current_span("request"):
    print(safi.invoke("q").response_metadata["safi"]["turnId"], flush=True)
flush()
os._exit(0)  # before the audit
"""
AUDITS = """
safi = create_safi_chain(Fake(), THREE, **settings)
print(safi.audit(sys.argv[2], 30).score)
safi.close()
flush()
"""


def configured() -> str:
    """The code of the page, which configures an SDK if there is an endpoint."""
    return blocks(PAGE, "python")[0]


@pytest.fixture
def collected() -> Iterator[Collector]:
    with collector() as one:
        yield one


def run(program: str, service: str, address: str, *arguments: str) -> str:
    away = ("OTEL_", "SAFI_", "LANGSMITH_", "LANGCHAIN_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(away)}
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": address} if address else {}
    env = {**own, **endpoint, "OTEL_SERVICE_NAME": service, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def by_name(spans: list[Received]) -> dict[str, Received]:
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("database"))
    return f"sqlite:///{tmp_path}/safi.db"


@pytest.mark.slow
@pytest.mark.parametrize("traced", [True, False], ids=["both", "only the worker has an SDK"])
def test_an_audit_of_another_process_is_in_the_trace_of_the_turn(
    store: str, traced: bool, collected: Collector
) -> None:
    turn = run(configured() + BEGINS + ANSWERS, "web", collected.address if traced else "", store)
    assert run(configured() + BEGINS + AUDITS, "worker", collected.address, store, turn) == "7"
    assert collected.types == {"application/x-protobuf"}
    spans = by_name(collected.spans)
    ours = {name: span.service for name, span in spans.items() if span.scope == "safi_agent"}
    audited = {CONSCIENCE: "worker", SPIRIT: "worker"}
    if not traced:
        assert ours == audited
        assert {spans[name].parent for name in audited} == {""}
        assert spans[SPIRIT].attributes["safi.turn.id"] == turn
        assert {event.span for event in collected.events} == {spans[SPIRIT].span}
        return
    assert ours == {TURN: "web", "invoke_agent Intellect": "web", "invoke_agent Will": "web", **audited}
    assert {span.trace for span in spans.values()} == {spans["request"].trace}
    assert spans[TURN].parent == spans["request"].span
    assert {span.parent for name, span in spans.items() if name not in (TURN, "request")} == {spans[TURN].span}
    assert spans[TURN].attributes["safi.turn.id"] == spans[SPIRIT].attributes["safi.turn.id"] == turn
    assert spans[SPIRIT].attributes["safi.score"] == 7
    assert [event.attributes["gen_ai.evaluation.name"] for event in collected.events] == ["Truth", "Care", "Thrift"]
    assert {(event.name, event.service, event.trace, event.span) for event in collected.events} == {
        ("gen_ai.evaluation.result", "worker", spans[TURN].trace, spans[TURN].span)
    }
    assert collected.metrics >= {"safi.decisions", "safi.turn.duration", "safi.audit.duration", "safi.audits"}


@pytest.mark.parametrize("ruling", [approve(), VIOLATION])
def test_no_content_is_among_the_bytes(
    ruling: str, make: Any, collected: Collector, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    base = collected.address
    exported.tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces")))
    exported.loggers.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{base}/v1/logs")))
    words = [secret() for _ in range(4)]
    model = Fake(
        intellect=f"{words[0]}\n<reflection>{words[1]}</reflection>",
        will=ruling.replace("fine", words[2]).replace("it breaks", words[2]),
    )
    safi = make(model)
    safi.invoke(words[3], {"configurable": {"safi_key": words[3]}})
    safi.drain()
    OTLPMetricExporter(f"{base}/v1/metrics").export(exported.metrics_data)
    sent = b"".join(collected.bodies)
    assert TURN in {span.name for span in collected.spans}
    assert "safi.backlog.depth" in collected.metrics
    assert b"safi.decision" in sent
    assert [word for word in words if word.encode() in sent] == []
