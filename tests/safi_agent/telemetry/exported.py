"""Spans, events and metrics of the package, exported in memory."""

from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from safi_agent.telemetry import SCOPE, commits, metrics, spans
from safi_agent.telemetry.backlog import monitor


class Exported:
    """Providers with exporters in memory; the providers of the process can be set only once, so they stay unset."""

    def __init__(self, patch: pytest.MonkeyPatch, *, events: bool) -> None:
        self._spans, self._events, self._metrics = (
            InMemorySpanExporter(),
            InMemoryLogRecordExporter(),
            InMemoryMetricReader(),
        )
        self.tracers, self.loggers = TracerProvider(), LoggerProvider()
        self.meters = MeterProvider([self._metrics])
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self._events))
        patch.setattr(spans, "tracer", self.tracers.get_tracer(SCOPE))
        patch.setattr(metrics, "instruments", metrics.Instruments(self.meters.get_meter(SCOPE)))
        monitor.observe(self.meters.get_meter(SCOPE))
        if events:
            patch.setattr(commits, "get_logger_provider", lambda: self.loggers)

    def shutdown(self) -> None:
        for provider in (self.tracers, self.loggers, self.meters):
            provider.shutdown()

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def clear(self) -> None:
        self._spans.clear()
        self._events.clear()

    @property
    def tree(self) -> dict[str, str | None]:
        """The name of each span's parent, by the span's name; None for the first of a trace."""
        names = {span.context.span_id: span.name for span in self.spans}
        return {span.name: names.get(span.parent.span_id, "?") if span.parent else None for span in self.spans}

    @property
    def events(self) -> list[Any]:
        return [data.log_record for data in self._events.get_finished_logs()]

    @property
    def metrics_data(self) -> Any:
        """All metrics, collected now; None where there are none."""
        return self._metrics.get_metrics_data()

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The attributes of each data point of a metric, and the point."""
        data = self.metrics_data
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        found = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
        return [(dict(point.attributes), point) for metric in found for point in metric.data.data_points]

    @property
    def text(self) -> str:
        """All that was exported, as text."""
        data = self.metrics_data
        logs = [record.to_json() for record in self._events.get_finished_logs()]
        return "".join([*(span.to_json() for span in self.spans), *logs, data.to_json() if data else ""])
