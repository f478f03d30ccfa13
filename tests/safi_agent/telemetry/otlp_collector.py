"""A collector on loopback that decodes what it gets over OTLP/HTTP."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS: dict[str, Any] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}


class Received(NamedTuple):
    """A span or an event; ids are in hex, and ``parent`` is empty for the first span of a trace."""

    service: str
    scope: str
    name: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, Any]


class Collector:
    """Keeps the requests of all signals, decoded, and their bytes."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.requests: dict[str, list[Any]] = {path: [] for path in REQUESTS}
        self.types: set[str] = set()
        self.address = ""

    def receive(self, path: str, kind: str, body: bytes) -> None:
        request = REQUESTS[path]()
        request.ParseFromString(body)
        self.bodies.append(body)
        self.types.add(kind)
        self.requests[path].append(request)

    @property
    def spans(self) -> list[Received]:
        found = []
        for resource in (one for request in self.requests["/v1/traces"] for one in request.resource_spans):
            for scope in resource.scope_spans:
                for span in scope.spans:
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    found.append(Received(service(resource), scope.scope.name, span.name, *ids, values(span)))
        return found

    @property
    def events(self) -> list[Received]:
        found = []
        for resource in (one for request in self.requests["/v1/logs"] for one in request.resource_logs):
            for scope in resource.scope_logs:
                for log in scope.log_records:
                    ids = (log.trace_id.hex(), log.span_id.hex(), "")
                    found.append(Received(service(resource), scope.scope.name, log.event_name, *ids, values(log)))
        return found

    @property
    def metrics(self) -> set[str]:
        requests = self.requests["/v1/metrics"]
        scopes = [scope for request in requests for one in request.resource_metrics for scope in one.scope_metrics]
        return {metric.name for scope in scopes for metric in scope.metrics if scope.scope.name == "safi_agent"}


def values(item: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    return {pair.key: plain(pair.value) for pair in item.attributes}


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def service(resource: Any) -> str:
    return str(values(resource.resource).get("service.name"))


@contextmanager
def collector() -> Iterator[Collector]:
    """Start a collector; its ``address`` is the base of the endpoints."""
    one = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            one.receive(self.path, self.headers["Content-Type"], body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        one.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield one
        finally:
            server.shutdown()
            thread.join()
