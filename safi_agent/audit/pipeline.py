"""The open turns of a chain, step by step: they are judged side by side, and what was judged is committed together."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from safi_agent.audit.attempts import Came, Judging
from safi_agent.audit.hook_dispatcher import Telling
from safi_agent.audit.plan import Plan
from safi_agent.log import write
from safi_agent.store import Job, Made, Ready, Store, prepare_batch
from safi_agent.store.store import AT_A_TIME
from safi_agent.unicode_text import many

log = logging.getLogger("safi_agent")
POLL = 0.5  # seconds from one look at what other processes have committed to the next, while something waits for it
AGAIN = 15.0  # seconds until a lane that could not be computed is tried again
TELL_AT_ONCE = 32  # turns whose hooks are called at the same time
AHEAD = 64  # turns that wait for their hooks with their record at hand; those of others are read again
MOST_ASKED = 500  # turns in one question to the store


class Told:
    """The hooks of a turn have been called."""

    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id


class Carriage:
    """Takes turns in, and brings them forward in rounds, all on one thread.

    A round that fails can be repeated: what it has not stored it has kept.
    """

    def __init__(self, plan: Plan, store: Store, put: Callable[[object], None], adopt: Callable[[], None]) -> None:
        self.plan, self.store, self._put, self._adopt = plan, store, put, adopt
        self._jobs: dict[str, Job] = {}
        self._judging = Judging(plan, put)
        self._telling = Telling(plan.timeout)
        self._dirty: set[str] = set()  # memory keys in whose lanes something may be committed
        self._in_lane: dict[str, Job] = {}  # judged, and not committed
        self._unmade: dict[str, tuple[float, str]] = {}  # lanes that cannot be computed: when it is tried again, why
        self._committed: dict[str, dict[str, Any]] = {}  # records on their way to the log
        self._to_tell: list[tuple[Job, dict[str, Any] | None]] = []
        self._telling_of: set[str] = set()
        self._settling: list[Job] = []
        self._look_at = self._tell_at = math.inf

    def take(self, what: object) -> None:
        """Take in a turn, or what has come of one; anything else is passed over."""
        if isinstance(what, Came):
            self._judged(self._judging.take(what.attempt))
        elif isinstance(what, Told):
            self._telling_of.discard(what.turn_id)
            if (told := self._jobs.get(what.turn_id)) is not None:
                self._settling.append(told)
        elif isinstance(what, Job) and what.id not in self._jobs:
            self._jobs[what.id] = what
            self.store.leases.under_way.add(what.id)  # here, where no Ctrl-C comes between this and its audit
            if what.audit:
                self._judging.add(what)
            else:
                self._enter_lane(what)

    def _judged(self, *keys: str | None) -> None:
        self._dirty.update(key for key in keys if key is not None)

    def _enter_lane(self, job: Job) -> None:
        self._in_lane[job.id] = job
        self._dirty.add(job.key)
        self._look_at = min(self._look_at, time.monotonic() + POLL)

    def wait(self) -> float:
        """Seconds until a round is due; 0 for now, infinity where it depends on what is taken in."""
        if self._dirty or self._committed or self._settling or self._judging.found or self._judging.tried:
            return 0.0
        if self._to_tell and len(self._telling_of) < TELL_AT_ONCE:
            return 0.0
        now = time.monotonic()
        times = [self._look_at - now if self._in_lane else math.inf, self._tell_at - now, self._judging.wait()]
        times += [when - now for when, _ in self._unmade.values()]
        return max(0.0, min(times))

    def round(self) -> list[Job]:
        """Bring everything as far as it goes; the turns for which nothing is left to do."""
        self._judged(*self._judging.look())
        self._look()
        settled = self._commit()
        self._log()
        self._tell()
        self._begin()
        for job in settled:
            self._jobs.pop(job.id, None)
            self.store.leases.under_way.discard(job.id)
        return settled

    def _look(self) -> None:
        """A lane whose head is another process's goes on without a word, or waits for a process that lives no more."""
        now = time.monotonic()
        for key in [key for key, (when, _) in self._unmade.items() if when <= now]:
            self._dirty.add(key)
        if not self._in_lane or now < self._look_at:
            return
        busy = self._judging.keys()
        ids = [job.id for job in self._in_lane.values() if job.key not in busy][:MOST_ASKED]
        if ids:
            self._have(self.store.load_records(ids))
            self._adopt()
            self._dirty.update(self._in_lane[i].key for i in ids if i in self._in_lane)
        self._look_at = now + POLL

    def _have(self, records: dict[str, dict[str, Any]]) -> None:
        for turn_id, record in records.items():
            if self._in_lane.pop(turn_id, None) is not None:
                self._committed[turn_id] = record

    def _commit(self) -> list[Job]:
        """Store what audits came to, commit what is ready, settle what is settled: all in one transaction."""
        found, tried, settling, keys = self._judging.found, self._judging.tried, self._settling, self._dirty
        if not (found or tried or settling or keys):
            return []
        ready = self.store.load_ready(keys, found) if keys else []
        lanes = [made for lane in ready if (made := self._made(lane)) is not None]
        done = {}
        if lanes or found or tried or settling:
            done = self.store.commit(lanes, found, tried=tried, settled=[job.id for job in settling])
        self._dirty = {lane.key for lane in lanes if lane.rows[0]["of"] not in done or len(lane.rows) == AT_A_TIME}
        for turn_id in found:
            self._in_lane[turn_id] = self._jobs[turn_id]
        if found:
            self._look_at = min(self._look_at, time.monotonic() + POLL)
        self._judging.found, self._judging.tried, self._settling = {}, {}, []
        self._have(done)
        return settling

    def _made(self, lane: Ready) -> Made | None:
        """What is to be written of a lane; None where it cannot be computed, so that others go on."""
        try:
            made = prepare_batch(lane, self.plan.compute)
        except Exception as error:
            if lane.key not in self._unmade:  # once, however often it is tried again
                log.error("The turns under the memory key %r cannot be committed.", lane.key, exc_info=error)
            self._unmade[lane.key] = time.monotonic() + AGAIN, type(error).__name__
            return None
        self._unmade.pop(lane.key, None)
        return made

    def _log(self) -> None:
        """Write the lines of what was committed, once for each log."""
        for path in dict.fromkeys(self._jobs[turn_id].log for turn_id in self._committed):
            write(self.store, path, self.plan.log_max_bytes)
        for turn_id, record in self._committed.items():
            job = self._jobs[turn_id]
            if self.plan.dues(turn_id, record, self.store.read_values):
                self._to_tell.append((job, record if len(self._to_tell) < AHEAD else None))
            else:
                self._settling.append(job)
        self._committed = {}

    def _tell(self) -> None:
        """Have hooks called, for so many turns at once."""
        count = TELL_AT_ONCE - len(self._telling_of)
        if count > 0 and self._to_tell:
            now, self._to_tell = self._to_tell[:count], self._to_tell[count:]
            missing = [job.id for job, record in now if record is None]
            read = self.store.load_records(missing) if missing else {}
            for job, record in now:
                self._telling_of.add(job.id)
                dues = self.plan.dues(job.id, record or read[job.id], self.store.read_values)
                self._telling.tell(dues, partial(self._put, Told(job.id)))
        self._tell_at = time.monotonic() + self._telling.look()

    def _begin(self) -> None:
        """Begin audits where there is room; their bodies are read now."""
        jobs = self._judging.next()
        kept = self.store.load_turns([job.id for job in jobs]) if jobs else {}
        for job in jobs:
            one = kept.get(job.id)
            if one is not None and one.status == "pending":
                if not self._judging.begin(job, one):
                    return
                continue
            self._judging.leave_out(job)
            if one is None:
                log.error("Turn %s is not in the store any more; it is not audited.", job.id)
                self._settling.append(job)
            else:
                self._enter_lane(job)
                self._look_at = -math.inf if one.status == "done" else self._look_at
        self._judged(*(one.key for one in self._judging.found.values()))

    def blocked(self) -> list[str]:
        """Why turns are not done, a sentence for each cause; on any thread."""
        found = self._judging.blocked()
        if count := len(self._in_lane):
            found.append(f"{many(count, 'turn')} behind another one under the same memory key.")
        found += [
            f"The turns under {key!r} cannot be committed ({why})." for key, (_, why) in list(self._unmade.items())
        ]
        return [*found, *self._telling.blocked()]

    def stop(self) -> None:
        """End the threads of hooks."""
        self._telling.stop()
