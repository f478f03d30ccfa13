"""Audits under way in this process: so many at once, each in a thread, with a time-out, tried again after a failure."""

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
from safi_agent.store import Job, Judged, Kept
from safi_agent.thread_pool import Threads

AT_ONCE = 32
AGAIN = 1.0  # seconds until it is tried again to start a thread


class Came(NamedTuple):
    """An attempt has ended."""

    attempt: "Attempt"


class Attempt:
    """An audit that was begun; ``deadline`` is on the monotonic clock."""

    def __init__(self, job: Job, failed: int, future: Future[Outcome], deadline: float) -> None:
        self.job, self.failed, self.future, self.deadline = job, failed, future, deadline


class Judging:
    """Turns to judge. A body is read when its audit begins, so that those that wait take no memory.

    ``found`` has what audits came to and ``tried`` how many attempts have failed, until someone has stored it.
    """

    def __init__(self, plan: Plan, put: Callable[[object], None]) -> None:
        self.plan, self._put = plan, put
        self.found: dict[str, Judged] = {}
        self.tried: dict[str, int] = {}
        self._threads = Threads(AT_ONCE, "safi-judge")
        self._waiting: deque[Job] = deque()
        self._begun: dict[str, Attempt] = {}  # the oldest first
        self._again: list[tuple[float, int, Job]] = []  # a heap
        self._count = itertools.count()
        self._begin_at = -math.inf

    def add(self, job: Job) -> None:
        """One more turn to judge."""
        self._waiting.append(job)

    def next(self) -> list[Job]:
        """The turns whose audit can begin now; they wait on until ``begin`` or ``leave_out`` was called for each."""
        if time.monotonic() < self._begin_at:
            return []
        places = min(AT_ONCE - len(self._begun) - len(self.found), self._threads.room())
        return list(itertools.islice(self._waiting, max(0, places)))

    def leave_out(self, job: Job) -> None:
        """A turn needs no audit here; of those from ``next``, in their order."""
        self._waiting.popleft()

    def begin(self, job: Job, kept: Kept) -> bool:
        """Begin an audit; of those from ``next``, in their order. False where no thread can be had: it waits on."""
        if kept.attempts >= self.plan.attempts:
            self._waiting.popleft()
            self._failed(job, kept.attempts, None)
            return True
        try:
            future = self._threads.submit(partial(self.plan.judge, job.id, kept))
        except RuntimeError:  # the pool has logged it
            self._begin_at = time.monotonic() + AGAIN
            return False
        self._waiting.popleft()
        attempt = Attempt(job, kept.attempts, future, time.monotonic() + self.plan.timeout)
        self._begun[job.id] = attempt
        future.add_done_callback(lambda _: self._put(Came(attempt)))
        return True

    def take(self, attempt: Attempt) -> str | None:
        """Take in what an attempt came to; the memory key if the audit has ended with it."""
        if self._begun.get(attempt.job.id) is not attempt:
            return None  # it was given up before
        del self._begun[attempt.job.id]
        try:
            outcome = attempt.future.result(0)
        except BaseException as error:
            outcome = Outcome(None, error)
        if outcome.ledger is None:
            return self._failed(attempt.job, attempt.failed, outcome.error or RuntimeError())
        self.found[attempt.job.id] = Judged(attempt.job.key, outcome.ledger, None, outcome.body, outcome.judge)
        return attempt.job.key

    def look(self) -> list[str]:
        """Give up what has taken too long, and have those wait again whose time has come; keys of ended audits."""
        now, keys = time.monotonic(), []
        for attempt in [one for one in self._begun.values() if one.deadline <= now]:
            del self._begun[attempt.job.id]
            self._threads.give_up(attempt.future)
            if (key := self._failed(attempt.job, attempt.failed, TimeoutError())) is not None:
                keys.append(key)
        while self._again and self._again[0][0] <= now:
            self._waiting.append(heappop(self._again)[2])
        return keys

    def _failed(self, job: Job, before: int, error: BaseException | None) -> str | None:
        after = self.plan.next(job.id, before, error)
        if error is not None:
            self.tried[job.id] = after.failed
        if after.wait is None:
            self.found[job.id] = Judged(job.key, None, after.why)
            return job.key
        heappush(self._again, (time.monotonic() + after.wait, next(self._count), job))
        return None

    def wait(self) -> float:
        """Seconds until something is due that is not announced: 0 for now, infinity for nothing."""
        times = [self._again[0][0]] if self._again else []
        times += [next(iter(self._begun.values())).deadline] if self._begun else []
        if self._waiting and len(self._begun) < AT_ONCE and self._threads.room():
            times.append(self._begin_at)
        return min(times, default=math.inf) - time.monotonic()

    def keys(self) -> set[str]:
        """Memory keys of which something is under way or waits."""
        jobs = [*self._waiting, *(one.job for one in self._begun.values()), *(job for *_, job in self._again)]
        return {job.key for job in jobs}

    def blocked(self) -> list[str]:
        """What is under way, a sentence for each kind; on any thread."""
        counts = {
            "audits are under way.": len(self._begun),
            "failed audits are to be tried again.": len(self._again),
            "audits wait for their turn.": len(self._waiting),
            "audits did not end in time and still run, each in a thread.": self._threads.stuck,
        }
        return [f"{count} {what}" for what, count in counts.items() if count]
