"""SAFi with and without an OpenTelemetry SDK: the CPU of tracing.

A runner's process exports the signals that ``SETTINGS`` in its folder names; without that file it has no SDK. Its
contenders are the chain over HTTP, and the chain with a model without latency in the same process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.governance import ours
from benchmarks.governance.instant import governed
from benchmarks.governance.peers import environment
from benchmarks.governance.rounds import Lap, Level, Runner, model
from benchmarks.governance.runner import Contender
from benchmarks.report import Spread, spread
from experiments.filing import Record
from experiments.provenance import ROOT
from safi_agent.telemetry.commits import CommitTelemetry
from safi_agent.telemetry.metrics import record_decision
from safi_agent.telemetry.spans import TraceScope, audit_scope, faculty_span, trace_context, turn_span

SETTINGS = "telemetry.json"
CONTENDERS = {"chain": (1, 10), "instant": (16,)}  # with their levels of concurrency
# Traces have the events of values as events of a span; "sampled" exports one trace in ten.
WAYS = ("without", "sampled", "traces", "all")
SAMPLED = 0.1


def export_to(endpoint: str, way: str) -> Callable[[], Any]:
    """Configure the SDK as an application does, with batches over OTLP; returns a function that flushes them."""
    from opentelemetry import _logs, metrics, trace
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    share = SAMPLED if way == "sampled" else 1.0
    tracers = TracerProvider(ParentBasedTraceIdRatio(share))
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(tracers)
    if way != "all":
        return tracers.force_flush
    loggers = LoggerProvider()
    loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=f"{endpoint}/v1/logs")))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics"))])
    _logs.set_logger_provider(loggers)
    metrics.set_meter_provider(meters)
    return lambda: [provider.force_flush() for provider in (tracers, loggers, meters)]


def contenders(url: str, folder: Path) -> dict[str, Contender]:
    settings = folder / SETTINGS
    flush: Callable[[], Any] = export_to(**json.loads(settings.read_text())) if settings.exists() else lambda: None

    def flushed(contender: Contender) -> Contender:
        def settle() -> int:
            audited = contender.settle()
            flush()
            return audited

        return Contender(contender.turn, settle)

    safi = governed(folder)

    async def turn(question: str) -> str:
        return str((await safi.ainvoke(question)).text)

    return {
        "chain": flushed(ours.chain(url, folder)),
        "instant": flushed(Contender(turn, lambda: safi.drain(None))),
    }


@contextmanager
def collector() -> Iterator[str]:
    """Start a collector; yields its address."""
    command = [sys.executable, "-m", "benchmarks.governance.collector"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def tracing(folder: Path, turns: int, rounds: int, answer_ms: float, audit_ms: float) -> Record:
    """CPU of a turn and its audit without and with an SDK, in alternating laps of ``turns`` turns."""
    laps: list[tuple[str, int, str, Lap]] = []
    with ExitStack() as stack:
        url, endpoint = stack.enter_context(model(answer_ms, audit_ms)), stack.enter_context(collector())
        runners = {}
        for way in WAYS:
            (folder / way).mkdir()
            if way != "without":
                (folder / way / SETTINGS).write_text(json.dumps({"endpoint": endpoint, "way": way}))
            runners[way] = Runner(sys.executable, "benchmarks.governance.traced", url, folder / way)
            stack.callback(runners[way].close)
        for who, levels in CONTENDERS.items():
            for at_once in levels:
                for counted in range(rounds + 1):
                    for way in WAYS if counted % 2 else reversed(WAYS):
                        lap = runners[way].lap(who, Level(at_once, turns))
                        if counted:  # the first is a warm-up
                            laps.append((who, at_once, way, lap))
    answers = sum(len(lap["latencies"]) for *_, lap in laps)
    return {
        "tracing": rows(laps),
        "without_sdk_us": without_sdk_us(),
        "turns": turns,
        "rounds": rounds,
        "answers": answers,
        "lost": answers - sum(lap["audited"] for *_, lap in laps),
    }


def rows(laps: list[tuple[str, int, str, Lap]]) -> list[Record]:
    """One row for each contender and level, with the overheads of the rounds."""
    made = []
    for who, at_once in dict.fromkeys((who, at_once) for who, at_once, *_ in laps):
        cpu = {way: [cpu_ms(lap) for w, n, o, lap in laps if (w, n, o) == (who, at_once, way)] for way in WAYS}
        made.append(
            {
                "who": who,
                "at_once": at_once,
                "cpu": {way: median(cpu[way]) for way in WAYS},
                "overhead": {way: overhead(cpu["without"], cpu[way]) for way in WAYS[1:]},
            }
        )
    return made


def overhead(without: Sequence[float], with_: Sequence[float]) -> Spread:
    """The relative differences of the rounds.

    >>> overhead([10.0, 10.0, 20.0], [11.0, 12.0, 22.0])
    Spread(median=0.1, least=0.1, most=0.2)
    """
    return spread([round(b / a - 1, 6) for a, b in zip(without, with_, strict=True)])


def without_sdk_us(turns: int = 5000) -> float:
    """CPU microseconds of the spans and metrics of a turn and its audit where no SDK is configured."""
    scope = TraceScope("unesco", {}, contents=False)
    rows = [{"value": f"Value {n}", "score": 0.5, "confidence": 0.9, "reason": ""} for n in range(15)]
    record = {"auditStatus": "complete", "valueSet": "unesco", "conscienceLedger": rows}
    start = time.process_time()
    for _ in range(turns):
        with turn_span(scope):
            for faculty in ("Intellect", "Will"):
                with faculty_span(faculty):
                    pass
            trace_context()
            record_decision("unesco", "approve", "judge")
        with audit_scope(scope, None), faculty_span("Conscience"):
            pass
        CommitTelemetry(make_commit_of_nothing, contents=False).report({"turn": record})
    return 1e6 * (time.process_time() - start) / turns


def make_commit_of_nothing(*_: Any) -> Any:
    """Is never called: ``CommitTelemetry`` only reports."""
    raise AssertionError


def cpu_ms(lap: Lap) -> float:
    """CPU milliseconds of a turn with its audit, and with what is exported of them."""
    return 1e3 * float(lap["cpu_seconds"] + lap["settle_cpu_seconds"]) / len(lap["latencies"])
