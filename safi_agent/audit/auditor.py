"""Carries approved turns of one chain from the outbox to the log: Conscience, Spirit, memory, log, hooks."""

import asyncio
import logging
import os
import threading
import time
import weakref
from functools import partial
from itertools import chain, repeat
from typing import Any

from safi_agent.audit.dispatcher import dispatcher, on_dispatcher, serve
from safi_agent.audit.plan import RECONNECT, Plan
from safi_agent.log import flush, write
from safi_agent.store import Job, Store

log = logging.getLogger("safi_agent")
POLL = 0.5  # how often it is looked whether another process has let a lane go on


class Auditor:
    """Knows what is under way in this process; everything that matters is in the store."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._fresh()
        store.keep_values(plan.values_id, plan.values.model_dump_json())
        self.beat()
        _all.add(self)
        serve(self)

    def _fresh(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._finished = 0
        self._looked = time.monotonic()
        self._committed: dict[str, asyncio.Future[dict[str, Any]]] = {}  # the records that are waited for
        self._unlogged: set[str] = set()  # committed here, not written yet

    after_fork = _fresh

    def beat(self) -> None:
        """Renew the leases on what is under way, and take over what dead processes left."""
        if self._under_way:
            self.store.renew()
        self._adopt()
        flush(self.store, self.plan.log, self.plan.log_max_bytes)
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

    def stop(self, timeout: float) -> None:
        """Nothing: what is not finished is carried on with, by this process or another."""

    def leave(self, timeout: float) -> None:
        """The interpreter exits: wait."""
        self.drain(timeout)

    async def _carry(self, job: Job) -> None:
        if job.id not in self.store.under_way:  # otherwise it was taken up twice, after an interrupt
            self.store.under_way.add(job.id)
            await self._carry_to_its_end(job)
            self.store.under_way.discard(job.id)
            self._finished += job.audit
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    async def _carry_to_its_end(self, job: Job) -> None:
        for wait in chain(RECONNECT, repeat(RECONNECT[-1])):
            try:
                if job.audit:
                    await self._judge(job)
                await self._settle(job, await self._commit(job))
                break
            except Exception as error:  # the store is out of reach; what is in it is safe
                log.error("The audit of turn %s waits.", job.id, exc_info=error)
                await asyncio.sleep(wait)

    async def _judge(self, job: Job) -> None:
        """Have the Conscience judge, unless that was done before; give up after so many attempts."""
        kept = self.store.load(job.id)
        if kept.status != "pending":
            return
        failed, cause = kept.attempts, "interrupted"
        while failed < self.plan.attempts:
            try:
                ledger = await self.plan.judge(job.id, kept)
            except Exception as error:
                failed, cause = failed + 1, type(error).__name__
                log.warning("Audit of turn %s, attempt %d of %d.", job.id, failed, self.plan.attempts, exc_info=error)
            else:
                self.store.judged(job.id, ledger, None)
                return
            self.store.tried(job.id, failed)
            if failed < self.plan.attempts:
                await asyncio.sleep(self.plan.wait_after(failed))
        self.store.judged(job.id, None, f"{cause}, {failed} attempts")

    async def _commit(self, job: Job) -> dict[str, Any]:
        """The turn's record, once it and all turns before it in its lane are committed."""
        committed: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._committed[job.id] = committed
        try:
            while True:
                for turn_id, record in self.store.commit_ready(job.key, self.plan.compute).items():
                    if turn_id in self._committed:
                        self._committed[turn_id].set_result(record)
                if not committed.done() and (before := self.store.record(job.id)) is not None:
                    return before  # by another process, or before a restart
                if (await asyncio.wait([committed], timeout=POLL))[0]:
                    return committed.result()
                self._look_for_the_dead()
        finally:
            self._committed.pop(job.id, None)

    def _look_for_the_dead(self) -> None:
        """A lane that does not go on may wait for a process that lives no more."""
        if (now := time.monotonic()) - self._looked > POLL:
            self._looked = now
            self._adopt()

    def _adopt(self) -> None:
        for job in self.store.adopt(self.plan.values.name, self.store.under_way):
            self.submit(job)

    async def _settle(self, job: Job, record: dict[str, Any]) -> None:
        """Log, then hooks. A hook may be called again after a crash; a line is written once."""
        self._unlogged.add(job.id)
        await asyncio.sleep(0)  # let others commit first: who comes first writes the lines of all
        if job.id in self._unlogged:
            self._unlogged -= {job.id, *write(self.store, job.log, self.plan.log_max_bytes)}
        await self.plan.tell(job.id, record)
        self.store.settle([job.id])


_all: "weakref.WeakSet[Auditor]" = weakref.WeakSet()


def _after_fork() -> None:
    for auditor in list(_all):
        auditor.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
