"""Telemetry of committed audits: the Spirit's span, an event for each value, and the count.

It is reported after the commit, so that each audit is reported once and with the figures that are in the log. If the
process dies between the two, that audit is missing in telemetry, and only there.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry._logs import Logger, SeverityNumber, get_logger_provider
from opentelemetry._logs._internal import ProxyLoggerProvider
from opentelemetry.context import Context
from opentelemetry.trace import Span

from safi_agent.store import Commit, JudgedTurn, Memory
from safi_agent.telemetry import SCOPE, metrics
from safi_agent.telemetry.attributes import (
    RESPONSE_ID,
    Attributes,
    evaluation_attributes,
    record_attributes,
    response_id,
)
from safi_agent.telemetry.spans import TraceContext, open_span, set_error, turn_context

log = logging.getLogger("safi_agent")
EVENT = "gen_ai.evaluation.result"
FAILED = "audit_failed"  # the type of the error on the span of a failed audit
Compute = Callable[[JudgedTurn, Memory], Commit]


class CommitTelemetry:
    """Reports the audits of one commit: ``compute`` is called for each turn before it, ``report`` once after it."""

    def __init__(self, compute: Compute, *, contents: bool) -> None:
        self._compute, self._contents = compute, contents
        self._begun = time.time_ns()
        self._traces: dict[str, TraceContext | None] = {}

    def compute(self, row: JudgedTurn, before: Memory) -> Commit:
        """The commit of a turn."""
        self._traces[row.id] = row.body.get("trace")
        return self._compute(row, before)

    def report(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Report the committed records of audits, by turn id. An SDK that fails is logged and changes nothing else."""
        try:
            self._report_all(records)
        except Exception as error:
            log.error("The telemetry of %d audits could not be reported.", len(records), exc_info=error)

    def _report_all(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        audits = [(turn_id, record) for turn_id, record in records.items() if record["auditStatus"] != "none"]
        logger = _logger() if audits else None
        for turn_id, record in audits:
            metrics.record_audit(record["valueSet"], record["auditStatus"])
            parent = turn_context(self._traces.get(turn_id))
            with open_span("Spirit", {}, parent, self._begun) as span:
                self._report(record, span, parent, logger)

    def _report(self, record: Mapping[str, Any], span: Span, parent: Context, logger: Logger | None) -> None:
        recording = span.is_recording()
        if recording:
            span.set_attributes(record_attributes(record))
            if record["auditStatus"] == "failed":
                set_error(span, FAILED)
        if logger is None and not recording:
            return
        evaluated = parent if parent else trace.set_span_in_context(span, parent)
        # The conventions ask for the id of the response where the event has no span.
        more: Attributes = {} if parent or recording else {RESPONSE_ID: response_id(record["turnId"])}
        for row in record["conscienceLedger"]:
            attributes = {**evaluation_attributes(row, contents=self._contents), **more}
            if logger is None:
                span.add_event(EVENT, attributes)
            else:
                logger.emit(
                    timestamp=time.time_ns(),
                    context=evaluated,
                    severity_number=SeverityNumber.INFO,
                    attributes=attributes,
                    event_name=EVENT,
                )


def _logger() -> Logger | None:
    """The logger of events; None if no logger provider is configured, and events go to the span."""
    provider = get_logger_provider()
    return None if isinstance(provider, ProxyLoggerProvider) else provider.get_logger(SCOPE)
