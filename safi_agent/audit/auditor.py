"""Carries approved turns of one chain from the outbox to the log: Conscience, Spirit, memory, log, hooks."""

import asyncio
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig

from safi_agent.audit.dispatcher import dispatcher, on_dispatcher, serve
from safi_agent.faculties.conscience import Conscience
from safi_agent.hooks import Alert, Hook, call, kinds, offenders
from safi_agent.log import flush
from safi_agent.record import Measure, commit, unpack, values_of
from safi_agent.store import Job, Memory, Row, Store
from safi_agent.values import ValueSet

log = logging.getLogger("safi_agent")
POLL = 0.5  # how often it is looked whether another process has let a lane go on
RECONNECT = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)  # how long until the store is tried again


@dataclass(frozen=True)
class Plan:
    """How a chain's audits are carried out."""

    values: ValueSet
    conscience: Callable[[ValueSet], Conscience]
    measure: Measure
    log: str
    hooks: tuple[Hook, ...] = ()
    attempts: int = 3
    backoff: float = 1.0
    timeout: float = 120.0
    tracers: Sequence[BaseCallbackHandler] = ()


class Auditor:
    """Knows what is under way in this process; everything that matters is in the store."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._fresh()
        store.keep_values(plan.values.fingerprint, plan.values.model_dump_json())
        _all.add(self)
        serve(self)
        self.beat()

    def _fresh(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._finished = 0
        self._looked = time.monotonic()
        self._committed: dict[str, asyncio.Event] = {}

    after_fork = _fresh

    def beat(self) -> None:
        """Renew the leases on what is under way, and take over what dead processes left."""
        if self._under_way:
            self.store.renew()
        for job in self.store.adopt(self.plan.values.name):
            self.submit(job)
        flush(self.store, self.plan.log)
        self.store.checkpoint()

    def submit(self, job: Job) -> None:
        """Carry a durable turn to its end, some time soon."""
        with self._changed:
            self._under_way += 1
        dispatcher().submit(partial(self._carry, job))

    def drain(self, timeout: float | None = None) -> int:
        """Wait until nothing is under way; how many audits were finished since the last call."""
        if on_dispatcher():
            raise RuntimeError(
                "drain: expected another thread than the one that audits; a hook cannot wait for itself."
            )
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, timeout)
            finished, self._finished = self._finished, 0
        return finished

    async def _carry(self, job: Job) -> None:
        for wait in chain(RECONNECT, repeat(RECONNECT[-1])):
            try:
                if job.audit:
                    await self._judge(job)
                await self._settle(job, await self._commit(job))
                break
            except Exception as error:  # the store is out of reach; what is in it is safe
                log.error("The audit of turn %s waits.", job.id, exc_info=error)
                await asyncio.sleep(wait)
        with self._changed:
            self._under_way -= 1
            self._finished += job.audit
            self._changed.notify_all()

    async def _judge(self, job: Job) -> None:
        """Have the Conscience judge, unless that was done before; give up after so many attempts."""
        kept, values, status = self.store.load(job.id)
        if status != "pending":
            return
        ask = partial(self.plan.conscience(values_of(values)).invoke, unpack(kept), self._config(job))
        failed, cause = job.attempts, "interrupted"
        while failed < self.plan.attempts:
            try:
                turn = await self._in_thread(ask)
                self.store.judged(job.id, [finding.model_dump() for finding in turn["ledger"]], None)
                return
            except Exception as error:
                failed, cause = failed + 1, type(error).__name__
                log.warning("Audit of turn %s, attempt %d of %d.", job.id, failed, self.plan.attempts, exc_info=error)
            self.store.tried(job.id, failed)
            if failed < self.plan.attempts:
                await asyncio.sleep(self.plan.backoff * 2 ** (failed - 1))
        self.store.judged(job.id, None, f"{cause}, {failed} attempts")

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        async with dispatcher().slots:
            future = dispatcher().threads.submit(work)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(future), self.plan.timeout)
            except TimeoutError:
                if not future.done():
                    dispatcher().threads.replace_stuck()
                raise

    def _config(self, job: Job) -> RunnableConfig:
        return {
            "run_name": "safi.audit",
            "tags": ["safi", "audit"],
            "metadata": {"safi_turn_id": job.id},
            "callbacks": list(self.plan.tracers),
        }

    async def _commit(self, job: Job) -> dict[str, Any]:
        """The turn's record, once it and all turns before it in its lane are committed."""
        committed = self._committed.setdefault(job.id, asyncio.Event())
        try:
            while True:
                for turn_id in self.store.commit_ready(job.key, self._compute):
                    if turn_id in self._committed:
                        self._committed[turn_id].set()
                if (record := self.store.record(job.id)) is not None:
                    return record
                try:
                    await asyncio.wait_for(committed.wait(), POLL)
                except TimeoutError:
                    self._look_for_the_dead()
        finally:
            del self._committed[job.id]

    def _look_for_the_dead(self) -> None:
        """A lane that does not go on may wait for a process that lives no more."""
        if (now := time.monotonic()) - self._looked > POLL:
            self._looked = now
            for job in self.store.adopt(self.plan.values.name):
                self.submit(job)

    def _compute(self, row: Row, before: Memory) -> Any:
        return commit(row, before, self.plan.measure)

    async def _settle(self, job: Job, record: dict[str, Any]) -> None:
        """Log, then hooks. A hook may be called again after a crash; a line is written once."""
        await asyncio.sleep(0)  # let others commit first: one flush writes the lines of all
        flush(self.store, job.log)
        measure = self.plan.measure
        for kind in kinds(record, measure.review_below, measure.drift_above):
            alert = Alert(kind, job.id, offenders(record["conscienceLedger"], self.plan.values), record)
            for hook in self.plan.hooks:
                await self._hook(hook, alert)
        self.store.settle([job.id])

    async def _hook(self, hook: Hook, alert: Alert) -> None:
        """Async hooks on the loop, others in a thread; none may hold up its lane for longer than an audit may."""
        work = call(hook, alert) if inspect.iscoroutinefunction(hook) else self._called(hook, alert)
        try:
            await asyncio.wait_for(work, self.plan.timeout)
        except TimeoutError:
            log.error("The hook %r did not end on turn %s.", hook, alert.turn_id)

    async def _called(self, hook: Hook, alert: Alert) -> None:
        await self._in_thread(partial(asyncio.run, call(hook, alert)))


_all: "weakref.WeakSet[Auditor]" = weakref.WeakSet()


def _after_fork() -> None:
    for auditor in list(_all):
        auditor.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
