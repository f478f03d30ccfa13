"""The plan of a chain's audits, and the rules that all branches share: attempts, retries, hook calls."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.runnables import RunnableConfig

from safi_agent.audit.hook_dispatcher import HookCall
from safi_agent.faculties.base import Faculty
from safi_agent.hooks import Alert, Hook, Kind, is_called_for, offenders
from safi_agent.prompts import DEFAULT_PROMPTS, Prompts, parse_prompts
from safi_agent.record import LOCAL_JUDGE, Measure, make_commit, parse_value_set, turn_from_body
from safi_agent.store import AuditResult, StoredTurn
from safi_agent.telemetry.commits import CommitTelemetry
from safi_agent.telemetry.spans import TraceScope, audit_scope
from safi_agent.values import ValueSet

log = logging.getLogger("safi_agent")
RECONNECT = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)  # seconds until the store is retried, by number of failures


class Outcome(NamedTuple):
    """The outcome of one attempt: a ledger, or an error that counts as a failed attempt."""

    ledger: list[dict[str, Any]] | None
    error: BaseException | None = None
    body: dict[str, Any] | None = None  #: the turn's, as it was read for the attempt
    judge: str | None = None  #: the name of the model that judged


class NextStep(NamedTuple):
    """What follows an attempt: a result to store, or another attempt after ``wait`` seconds."""

    result: AuditResult | None  #: None where the audit is tried again
    failed: int | None  #: failed attempts to store; None where the number has not changed
    wait: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The settings of a chain's audits."""

    values: ValueSet
    conscience: Callable[[ValueSet, str], Faculty]  #: from a value set and a system prompt
    model: str  #: the name of the Conscience's model, where its replies have none
    measure: Measure
    log: str
    log_max_bytes: int | None = None
    hooks: tuple[Hook, ...] = ()
    attempts: int = 3
    backoff: float = 1.0
    timeout: float = 120.0
    tracers: Sequence[BaseCallbackHandler] = ()
    trace_contents: bool = False
    prompts: Prompts = DEFAULT_PROMPTS
    read_stored: Callable[[str], str | None] = lambda _: None  #: reads value sets and prompts by their fingerprint

    @property
    def values_id(self) -> str:
        """The fingerprint of the values."""
        return self.values.fingerprint

    def judge(self, turn_id: str, stored: StoredTurn) -> Outcome:
        """Run the Conscience with the values and the prompts under which the turn was approved.

        Never raises: any error of the model, including ``SystemExit``, is a failed attempt.
        """
        try:
            body = json.loads(stored.body)
            conscience = self.conscience(parse_value_set(stored.values), self._prompts_of(body).conscience)
            scope = TraceScope(body["valueSet"], {"conscience": self.model}, self.trace_contents)
            with audit_scope(scope, body.get("trace")):
                turn = conscience.invoke(turn_from_body(body), self._config(turn_id))
            findings = turn["ledger"]
            ledger: list[dict[str, Any]] = [finding.model_dump() for finding in findings]
            if findings.local is not None:
                ledger.append({LOCAL_JUDGE: findings.local})
            return Outcome(ledger, body=body, judge=findings.model or self.model)
        except BaseException as error:
            return Outcome(None, error)

    def _prompts_of(self, body: Mapping[str, Any]) -> Prompts:
        """The prompts under which a turn was answered, possibly by another process.

        Raises:
            ValueError: the store does not have them.
        """
        fingerprint = body["prompts"]
        if fingerprint == self.prompts.fingerprint:
            return self.prompts
        return parse_prompts(self.read_stored(fingerprint))

    def _config(self, turn_id: str) -> RunnableConfig:
        """The config of the audit's own run; without callbacks if there is no tracer."""
        config: RunnableConfig = {"tags": ["safi", "audit"], "metadata": {"safi_turn_id": turn_id}}
        manager = CallbackManager.configure(list(self.tracers))
        if manager.handlers:
            return config | {"run_name": "safi.audit", "callbacks": list(self.tracers)}
        return config | {"callbacks": manager}

    def commit_telemetry(self) -> CommitTelemetry:
        """Computes the turns of one commit, and reports those that were audited."""
        return CommitTelemetry(partial(make_commit, measure=self.measure), contents=self.trace_contents)

    def may_attempt(self, attempts: int) -> bool:
        """Whether another attempt is allowed after this many failed ones."""
        return attempts < self.attempts

    def next_step(self, turn_id: str, key: str, attempts: int, outcome: Outcome) -> NextStep:
        """The rule for attempts.

        Args:
            turn_id: the turn that is audited.
            key: its memory key.
            attempts: how many attempts had failed before this one.
            outcome: of this attempt; without a ledger and an error where no attempt was made.
        """
        if outcome.ledger is not None:
            return NextStep(AuditResult(key, outcome.ledger, None, outcome.body, outcome.judge), None)
        error = outcome.error
        failed, cause = attempts + (error is not None), "interrupted" if error is None else type(error).__name__
        if error is not None:
            log.warning("Audit of turn %s, attempt %d of %d.", turn_id, failed, self.attempts, exc_info=error)
        stored = None if error is None else failed
        if self.may_attempt(failed):
            return NextStep(None, stored, self.backoff * 2.0 ** (failed - 1))
        return NextStep(AuditResult(key, None, f"{cause}, {failed} attempts"), stored)

    def hook_calls(
        self, turn_id: str, record: Mapping[str, Any], read_values: Callable[[str], str | None]
    ) -> list[HookCall]:
        """The hook calls of a record: hooks with ``every_turn`` first, then all hooks for each alert.

        Offenders are values of the set by which the turn was judged, which ``read_values`` returns for its fingerprint.
        The turn may have been taken over from a chain of another set, or approved before the set was changed.
        """
        if not self.hooks:
            return []
        kinds: list[Kind] = ["turn", *self.measure.alert_kinds(record)]
        calls = [(hook, kind) for kind in kinds for hook in self.hooks if is_called_for(hook, kind)]
        worst = offenders(record["conscienceLedger"], self._judged_by(record, read_values)) if calls else ()
        return [HookCall(hook, Alert(kind, turn_id, worst, record)) for hook, kind in calls]

    def _judged_by(self, record: Mapping[str, Any], read_values: Callable[[str], str | None]) -> ValueSet:
        fingerprint = record.get("measure", {}).get("values", self.values_id)
        if fingerprint == self.values_id:
            return self.values
        try:
            return parse_value_set(read_values(fingerprint))
        except ValueError:  # the store does not have it any more
            return self.values
