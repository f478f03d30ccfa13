"""Audit attempts of this process: a bounded number at once, each on a thread, with a timeout and retries."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from safi_agent.audit.plan import Outcome, Plan
from safi_agent.store import AuditResult, Job, StoredTurn
from safi_agent.thread_pool import ThreadPool

MAX_ATTEMPTS_RUNNING = 32
RETRY_THREAD = 1.0  # seconds until starting a thread is retried


class AttemptEnded(NamedTuple):
    """Message to the pipeline: an attempt has ended."""

    attempt: "Attempt"


class Attempt:
    """A running attempt; ``deadline`` is a time of the monotonic clock."""

    def __init__(self, job: Job, failed: int, future: Future[Outcome], deadline: float) -> None:
        self.job, self.failed, self.future, self.deadline = job, failed, future, deadline


class AttemptPool:
    """A queue of turns to audit and the running attempts. Bodies are read when an attempt begins, to save memory.

    ``results`` has audit results and ``failed_attempts`` their numbers of failed attempts, until they are stored.
    """

    def __init__(self, plan: Plan, put: Callable[[object], None]) -> None:
        self.plan, self._put = plan, put
        self.results: dict[str, AuditResult] = {}
        self.failed_attempts: dict[str, int] = {}
        self._threads = ThreadPool(MAX_ATTEMPTS_RUNNING, "safi-judge")
        self._waiting: deque[Job] = deque()
        self._begun: dict[str, Attempt] = {}  # the oldest first
        self._retries: list[tuple[float, int, Job]] = []  # a heap
        self._count = itertools.count()
        self._begin_at = -math.inf

    def add(self, job: Job) -> None:
        """Queue a turn."""
        self._waiting.append(job)

    def startable(self) -> list[Job]:
        """The turns whose audit can begin now; each stays queued until ``begin`` or ``skip`` is called for it."""
        if time.monotonic() < self._begin_at:
            return []
        places = min(MAX_ATTEMPTS_RUNNING - len(self._begun) - len(self.results), self._threads.free_slots())
        return list(itertools.islice(self._waiting, max(0, places)))

    def skip(self, job: Job) -> None:
        """Remove a turn of ``startable`` that needs no audit, in order."""
        self._waiting.popleft()

    def begin(self, job: Job, stored: StoredTurn) -> bool:
        """Begin an audit of ``startable``, in order; False where no thread is available, and the turn stays queued."""
        if not self.plan.may_attempt(stored.attempts):
            self._waiting.popleft()
            self._end(job, stored.attempts, Outcome(None))
            return True
        try:
            future = self._threads.submit(partial(self.plan.judge, job.id, stored))
        except RuntimeError:  # the pool has logged it
            self._begin_at = time.monotonic() + RETRY_THREAD
            return False
        self._waiting.popleft()
        attempt = Attempt(job, stored.attempts, future, time.monotonic() + self.plan.timeout)
        self._begun[job.id] = attempt
        future.add_done_callback(lambda _: self._put(AttemptEnded(attempt)))
        return True

    def finish(self, attempt: Attempt) -> str | None:
        """Process the outcome of an attempt; the memory key if the audit has ended."""
        if self._begun.get(attempt.job.id) is not attempt:
            return None  # it was abandoned before
        del self._begun[attempt.job.id]
        try:
            outcome = attempt.future.result(0)
        except BaseException as error:
            outcome = Outcome(None, error)
        return self._end(attempt.job, attempt.failed, outcome)

    def expire(self) -> list[str]:
        """Abandon attempts past their deadline and requeue due retries; the memory keys of ended audits."""
        now, keys = time.monotonic(), []
        for attempt in [one for one in self._begun.values() if one.deadline <= now]:
            del self._begun[attempt.job.id]
            self._threads.abandon(attempt.future)
            if (key := self._end(attempt.job, attempt.failed, Outcome(None, TimeoutError()))) is not None:
                keys.append(key)
        while self._retries and self._retries[0][0] <= now:
            self._waiting.append(heappop(self._retries)[2])
        return keys

    def _end(self, job: Job, attempts: int, outcome: Outcome) -> str | None:
        """Note the result of an attempt, or schedule the next one; the memory key if the audit has ended."""
        after = self.plan.next_step(job.id, job.key, attempts, outcome)
        if after.failed is not None:
            self.failed_attempts[job.id] = after.failed
        if after.result is not None:
            self.results[job.id] = after.result
            return job.key
        heappush(self._retries, (time.monotonic() + after.wait, next(self._count), job))
        return None

    def seconds_until_due(self) -> float:
        """Seconds until the next deadline, retry or start: 0 for now, infinity for none."""
        times = [self._retries[0][0]] if self._retries else []
        times += [next(iter(self._begun.values())).deadline] if self._begun else []
        if self._waiting and len(self._begun) < MAX_ATTEMPTS_RUNNING and self._threads.free_slots():
            times.append(self._begin_at)
        return min(times, default=math.inf) - time.monotonic()

    def open_keys(self) -> set[str]:
        """The memory keys of queued and running turns."""
        jobs = [*self._waiting, *(one.job for one in self._begun.values()), *(job for *_, job in self._retries)]
        return {job.key for job in jobs}

    def blocked(self) -> list[str]:
        """What is running and queued, one sentence for each kind. Thread-safe."""
        counts = {
            "audits are running.": len(self._begun),
            "failed audits are waiting for a retry.": len(self._retries),
            "audits are queued.": len(self._waiting),
            "audits have timed out and still occupy a thread each.": self._threads.stuck,
        }
        return [f"{count} {what}" for what, count in counts.items() if count]
