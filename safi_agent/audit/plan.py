"""How the audits of a chain are carried out, and the steps that are the same in every branch."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.runnables import RunnableConfig

from safi_agent.audit.hook_dispatcher import Due
from safi_agent.faculties.conscience import Conscience
from safi_agent.hooks import Alert, Hook, Kind, asks, kinds, offenders
from safi_agent.record import Measure, commit, unpack, values_of
from safi_agent.store import Commit, Kept, Memory, Row
from safi_agent.values import ValueSet

log = logging.getLogger("safi_agent")
RECONNECT = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)  # how long until the store is tried again


class Outcome(NamedTuple):
    """What an attempt at an audit came to: a ledger, or an error that is counted."""

    ledger: list[dict[str, Any]] | None
    error: BaseException | None = None
    body: dict[str, Any] | None = None  #: the turn's, as it was read for the attempt
    judge: str | None = None  #: the name of the model that judged


class Next(NamedTuple):
    """What follows a failed attempt: another one after ``wait`` seconds, or, where that is None, no more."""

    failed: int
    wait: float | None
    why: str  #: what the record says of an audit that was given up


@dataclass(frozen=True)
class Plan:
    """How a chain's audits are carried out."""

    values: ValueSet
    conscience: Callable[[ValueSet], Conscience]
    model: str  #: the name of the Conscience's model, where its replies have none
    measure: Measure
    log: str
    log_max_bytes: int | None = None
    hooks: tuple[Hook, ...] = ()
    attempts: int = 3
    backoff: float = 1.0
    timeout: float = 120.0
    tracers: Sequence[BaseCallbackHandler] = ()

    @property
    def values_id(self) -> str:
        """The fingerprint of the values."""
        return self.values.fingerprint

    def judge(self, turn_id: str, kept: Kept) -> Outcome:
        """What the Conscience finds, by the values under which the turn was approved.

        It never raises, whatever the model does: an error, ``SystemExit`` among them, is a failed attempt.
        """
        try:
            body = json.loads(kept.body)
            conscience = self.conscience(values_of(kept.values))
            turn = conscience.invoke(unpack(body), self._config(turn_id))
            found = turn["ledger"]
            return Outcome([finding.model_dump() for finding in found], body=body, judge=found.model or self.model)
        except BaseException as error:
            return Outcome(None, error)

    def _config(self, turn_id: str) -> RunnableConfig:
        """A run of its own for tracers; none where nobody would be informed of it."""
        config: RunnableConfig = {"tags": ["safi", "audit"], "metadata": {"safi_turn_id": turn_id}}
        manager = CallbackManager.configure(list(self.tracers))
        if manager.handlers:
            return config | {"run_name": "safi.audit", "callbacks": list(self.tracers)}
        return config | {"callbacks": manager}

    def next(self, turn_id: str, before: int, error: BaseException | None) -> Next:
        """The rule for attempts: ``before`` have failed, and now one more with ``error`` (None: none was begun)."""
        failed, cause = before + (error is not None), "interrupted" if error is None else type(error).__name__
        if error is not None:
            log.warning("Audit of turn %s, attempt %d of %d.", turn_id, failed, self.attempts, exc_info=error)
        again = failed < self.attempts
        return Next(failed, self.backoff * 2.0 ** (failed - 1) if again else None, f"{cause}, {failed} attempts")

    def compute(self, row: Row, before: Memory) -> Commit:
        """What a commit writes."""
        return commit(row, before, self.measure)

    def dues(self, turn_id: str, record: Mapping[str, Any], kept: Callable[[str], str | None]) -> list[Due]:
        """The hooks to call: those that watch every turn, then all of them for each thing that the record raises.

        Offenders are those of the value set by which the turn was judged, which ``kept`` reads by its fingerprint: the
        turn may have been taken over from a chain of another set, or approved before the set was changed.
        """
        if not self.hooks:
            return []
        found: list[Kind] = ["turn", *kinds(record, self.measure.review_below, self.measure.drift_above)]
        asked = [(hook, kind) for kind in found for hook in self.hooks if asks(hook, kind)]
        worst = offenders(record["conscienceLedger"], self._judged_by(record, kept)) if asked else ()
        return [Due(hook, Alert(kind, turn_id, worst, record)) for hook, kind in asked]

    def _judged_by(self, record: Mapping[str, Any], kept: Callable[[str], str | None]) -> ValueSet:
        fingerprint = record.get("measure", {}).get("values", self.values_id)
        if fingerprint == self.values_id:
            return self.values
        try:
            return values_of(kept(fingerprint))
        except ValueError:  # the store has lost it meanwhile
            return self.values
