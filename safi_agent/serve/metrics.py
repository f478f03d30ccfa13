"""The metrics of the package in Prometheus' format: those of ``safi_agent.telemetry``, without counters of its own."""

import threading

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_lock = threading.Lock()  # the exporter repeats metrics if two threads collect them at once


def configure_metrics() -> CollectorRegistry:
    """Export the metrics of this process: add a reader to the application's meter provider, or configure one."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry)
    provider = metrics.get_meter_provider()
    if isinstance(provider, MeterProvider):
        provider.add_metric_reader(reader)
    else:
        metrics.set_meter_provider(MeterProvider([reader]))
    return registry


def collect(registry: CollectorRegistry) -> bytes:
    """All metrics as text. It reads the store, to measure the backlog."""
    with _lock:
        return generate_latest(registry)
