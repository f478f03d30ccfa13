"""How the audits of a chain are carried out, and the steps that are the same whoever does it."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig

from safi_agent.audit.dispatcher import dispatcher
from safi_agent.faculties.conscience import Conscience
from safi_agent.hooks import Alert, Hook, Kind, asks, call, kinds, offenders
from safi_agent.record import Measure, commit, unpack, values_of
from safi_agent.store import Commit, Kept, Memory, Row
from safi_agent.values import ValueSet

log = logging.getLogger("safi_agent")
RECONNECT = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)  # how long until the store is tried again


@dataclass(frozen=True)
class Plan:
    """How a chain's audits are carried out."""

    values: ValueSet
    conscience: Callable[[ValueSet], Conscience]
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

    async def judge(self, turn_id: str, kept: Kept) -> list[dict[str, Any]]:
        """What the Conscience finds, by the values under which the turn was approved; raises what goes wrong."""
        conscience = self.conscience(values_of(kept.values))
        config: RunnableConfig = {
            "run_name": "safi.audit",
            "tags": ["safi", "audit"],
            "metadata": {"safi_turn_id": turn_id},
            "callbacks": list(self.tracers),
        }
        turn = await self._in_thread(partial(conscience.invoke, unpack(kept.body), config))
        return [finding.model_dump() for finding in turn["ledger"]]

    def compute(self, row: Row, before: Memory) -> Commit:
        """What a commit writes."""
        return commit(row, before, self.measure)

    def wait_after(self, failed: int) -> float:
        """Seconds until an audit is tried again."""
        return float(self.backoff * 2 ** (failed - 1))

    async def tell(self, turn_id: str, record: Mapping[str, Any]) -> None:
        """Call the hooks: those that watch every turn, then all of them for what the record raises."""
        found: list[Kind] = ["turn", *kinds(record, self.measure.review_below, self.measure.drift_above)]
        for kind in found:
            for hook in self.hooks:
                if asks(hook, kind):
                    worst = offenders(record["conscienceLedger"], self.values)
                    await self._hook(hook, Alert(kind, turn_id, worst, record))

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        async with dispatcher().slots:
            future = dispatcher().threads.submit(work)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(future), self.timeout)
            except TimeoutError:
                if not future.done():
                    dispatcher().threads.replace_stuck()
                raise

    async def _hook(self, hook: Hook, alert: Alert) -> None:
        """Async hooks on the loop, others in a thread; none may hold up its lane for longer than an audit may."""
        work = call(hook, alert) if inspect.iscoroutinefunction(hook) else self._called(hook, alert)
        try:
            await asyncio.wait_for(work, self.timeout)
        except TimeoutError:
            log.error("The hook %r did not end on turn %s.", hook, alert.turn_id)

    async def _called(self, hook: Hook, alert: Alert) -> None:
        await self._in_thread(partial(asyncio.run, call(hook, alert)))
