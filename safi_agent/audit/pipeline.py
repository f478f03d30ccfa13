"""The audit pipeline: concurrent attempts, then commit, log and hooks in batches."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from safi_agent.audit.attempts import AttemptEnded, AttemptPool
from safi_agent.audit.hook_dispatcher import HookDispatcher
from safi_agent.audit.plan import Plan
from safi_agent.log import write
from safi_agent.store import Job, PreparedBatch, ReadyBatch, Store, prepare_batch
from safi_agent.store.store import AT_A_TIME
from safi_agent.telemetry.commits import Compute
from safi_agent.unicode_text import many

log = logging.getLogger("safi_agent")
POLL = 0.5  # seconds between polls of the commits of other processes
RETRY_COMMIT = 15.0  # seconds until a failed commit is retried
MAX_HOOKS_RUNNING = 32  # turns whose hooks run at the same time
MAX_RECORDS_HELD = 64  # waiting turns whose records are kept in memory; others are read again
MAX_TURNS_PER_QUERY = 500  # turns per query


class HooksCalled:
    """Message to the pipeline: the hooks of a turn have been called."""

    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id


class AuditPipeline:
    """Receives turns and advances them in rounds, all on one thread.

    A failed round can be repeated: results that are not stored yet are kept in memory.
    """

    def __init__(self, plan: Plan, store: Store, put: Callable[[object], None], take_over: Callable[[], None]) -> None:
        self.plan, self.store, self._put, self._take_over = plan, store, put, take_over
        self._jobs: dict[str, Job] = {}
        self._attempts = AttemptPool(plan, put)
        self._hooks = HookDispatcher(plan.timeout)
        self._dirty: set[str] = set()  # memory keys in which something may be committed
        self._uncommitted: dict[str, Job] = {}  # judged, and not committed
        self._failed_keys: dict[str, tuple[float, str]] = {}  # keys whose commit failed: when to retry, why
        self._committed: dict[str, dict[str, Any]] = {}  # committed records that are not logged yet
        self._hooks_waiting: list[tuple[Job, dict[str, Any] | None]] = []
        self._hooks_running: set[str] = set()
        self._to_settle: list[Job] = []
        self._poll_at = self._hooks_at = math.inf

    def receive(self, what: object) -> None:
        """Receive a turn or a message about one; anything else is ignored."""
        if isinstance(what, AttemptEnded):
            self._mark_dirty(self._attempts.finish(what.attempt))
        elif isinstance(what, HooksCalled):
            self._hooks_running.discard(what.turn_id)
            if (job := self._jobs.get(what.turn_id)) is not None:
                self._to_settle.append(job)
        elif isinstance(what, Job) and what.id not in self._jobs:
            self._jobs[what.id] = what
            # Here, on the audit thread, Ctrl-C cannot interrupt between this and the audit.
            self.store.leases.under_way.add(what.id)
            if what.audit:
                self._attempts.add(what)
            else:
                self._queue_for_commit(what)

    def _mark_dirty(self, *keys: str | None) -> None:
        self._dirty.update(key for key in keys if key is not None)

    def _queue_for_commit(self, job: Job) -> None:
        self._uncommitted[job.id] = job
        self._dirty.add(job.key)
        self._poll_at = min(self._poll_at, time.monotonic() + POLL)

    def seconds_until_due(self) -> float:
        """Seconds until the next round is due; 0 for now, infinity if it depends on further messages."""
        if (
            self._dirty
            or self._committed
            or self._to_settle
            or self._attempts.results
            or self._attempts.failed_attempts
        ):
            return 0.0
        if self._hooks_waiting and len(self._hooks_running) < MAX_HOOKS_RUNNING:
            return 0.0
        now = time.monotonic()
        times = [
            self._poll_at - now if self._uncommitted else math.inf,
            self._hooks_at - now,
            self._attempts.seconds_until_due(),
        ]
        times += [when - now for when, _ in self._failed_keys.values()]
        return max(0.0, min(times))

    def run_round(self) -> list[Job]:
        """Advance all turns as far as possible; returns the turns that are finished."""
        self._mark_dirty(*self._attempts.expire())
        self._poll()
        settled = self._commit()
        self._write_log()
        self._call_hooks()
        self._begin_audits()
        for job in settled:
            self._jobs.pop(job.id, None)
            self.store.leases.under_way.discard(job.id)
        return settled

    def _poll(self) -> None:
        """Poll memory keys whose first turn belongs to another process, which sends no message when it is done."""
        now = time.monotonic()
        for key in [key for key, (when, _) in self._failed_keys.items() if when <= now]:
            self._dirty.add(key)
        if not self._uncommitted or now < self._poll_at:
            return
        busy = self._attempts.open_keys()
        ids = [job.id for job in self._uncommitted.values() if job.key not in busy][:MAX_TURNS_PER_QUERY]
        if ids:
            self._note_committed(self.store.load_records(ids))
            self._take_over()
            self._dirty.update(self._uncommitted[i].key for i in ids if i in self._uncommitted)
        self._poll_at = now + POLL

    def _note_committed(self, records: dict[str, dict[str, Any]]) -> None:
        for turn_id, record in records.items():
            if self._uncommitted.pop(turn_id, None) is not None:
                self._committed[turn_id] = record

    def _commit(self) -> list[Job]:
        """Store audit results, commit ready turns and mark settled ones, all in one transaction."""
        results, failed_attempts, settling, keys = (
            self._attempts.results,
            self._attempts.failed_attempts,
            self._to_settle,
            self._dirty,
        )
        if not (results or failed_attempts or settling or keys):
            return []
        ready = self.store.load_ready(keys, results) if keys else []
        telemetry = self.plan.commit_telemetry()
        batches = [prepared for batch in ready if (prepared := self._prepare(batch, telemetry.compute)) is not None]
        done = {}
        if batches or results or failed_attempts or settling:
            done = self.store.commit(batches, results, tried=failed_attempts, settled=[job.id for job in settling])
        self._dirty = {
            batch.key for batch in batches if batch.rows[0]["of"] not in done or len(batch.rows) == AT_A_TIME
        }
        for turn_id in results:
            self._uncommitted[turn_id] = self._jobs[turn_id]
        if results:
            self._poll_at = min(self._poll_at, time.monotonic() + POLL)
        self._attempts.results, self._attempts.failed_attempts, self._to_settle = {}, {}, []
        self._note_committed(done)
        telemetry.report(done)
        return settling

    def _prepare(self, batch: ReadyBatch, compute: Compute) -> PreparedBatch | None:
        """Compute the commit of a memory key; None if that fails, so that other keys proceed."""
        try:
            prepared = prepare_batch(batch, compute)
        except Exception as error:
            if batch.key not in self._failed_keys:  # logged once, however often it is retried
                log.error("The turns under the memory key %r cannot be committed.", batch.key, exc_info=error)
            self._failed_keys[batch.key] = time.monotonic() + RETRY_COMMIT, type(error).__name__
            return None
        self._failed_keys.pop(batch.key, None)
        return prepared

    def _write_log(self) -> None:
        """Write the log lines of committed turns, once for each log."""
        for path in dict.fromkeys(self._jobs[turn_id].log for turn_id in self._committed):
            write(self.store, path, self.plan.log_max_bytes)
        for turn_id, record in self._committed.items():
            job = self._jobs[turn_id]
            if self.plan.hook_calls(turn_id, record, self.store.read_values):
                self._hooks_waiting.append((job, record if len(self._hooks_waiting) < MAX_RECORDS_HELD else None))
            else:
                self._to_settle.append(job)
        self._committed = {}

    def _call_hooks(self) -> None:
        """Call hooks for a bounded number of turns at once."""
        count = MAX_HOOKS_RUNNING - len(self._hooks_running)
        if count > 0 and self._hooks_waiting:
            now, self._hooks_waiting = self._hooks_waiting[:count], self._hooks_waiting[count:]
            missing = [job.id for job, record in now if record is None]
            read = self.store.load_records(missing) if missing else {}
            for job, record in now:
                self._hooks_running.add(job.id)
                calls = self.plan.hook_calls(job.id, record or read[job.id], self.store.read_values)
                self._hooks.dispatch(calls, partial(self._put, HooksCalled(job.id)))
        self._hooks_at = time.monotonic() + self._hooks.expire()

    def _begin_audits(self) -> None:
        """Begin audits while slots are free; their bodies are read now."""
        jobs = self._attempts.startable()
        stored = self.store.load_turns([job.id for job in jobs]) if jobs else {}
        for job in jobs:
            turn = stored.get(job.id)
            if turn is not None and turn.status == "pending":
                if not self._attempts.begin(job, turn):
                    return
                continue
            self._attempts.skip(job)
            if turn is None:
                log.error("Turn %s is no longer in the store; it is not audited.", job.id)
                self._to_settle.append(job)
            else:
                self._queue_for_commit(job)
                self._poll_at = -math.inf if turn.status == "done" else self._poll_at
        self._mark_dirty(*(turn.key for turn in self._attempts.results.values()))

    def blocked(self) -> list[str]:
        """Why turns are not done, one sentence for each cause. Thread-safe."""
        sentences = self._attempts.blocked()
        if count := len(self._uncommitted):
            sentences.append(f"{many(count, 'turn')} waiting for an earlier one of the same memory key.")
        sentences += [
            f"The turns under {key!r} cannot be committed ({why})." for key, (_, why) in list(self._failed_keys.items())
        ]
        return [*sentences, *self._hooks.blocked()]

    def stop(self) -> None:
        """End the threads of hooks."""
        self._hooks.stop()
