"""Group commit: the judged turns of all memory keys that wait are committed and written to the log together.

A commit waits for the server's disk and for the commits of all other workers, and so does a write to the log. A worker
therefore has one group under way; what comes meanwhile forms the next one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from safi_agent.audit.hook_dispatcher import HookCall
from safi_agent.audit.plan import Plan
from safi_agent.log import flush
from safi_agent.store import Store, UnsettledTurn


class CommittedTurn(NamedTuple):
    """A turn that is committed and logged. If there are no hooks to call, it is also settled."""

    id: str
    is_audit: bool
    calls: list[HookCall]


class _Group(NamedTuple):
    """The turns of each memory key, in commit order, and the keys that could not be committed."""

    turns: Mapping[str, list[CommittedTurn]]
    errors: Mapping[str, Exception]


class GroupCommit:
    """Commits turns on the event loop of a worker; ``run`` runs a function on a thread."""

    def __init__(self, plan: Plan, store: Store, run: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self.plan, self.store, self._run = plan, store, run
        self._busy = asyncio.Lock()
        self._next: dict[str, str] = {}  # a turn of each memory key of the next group
        self._task: asyncio.Task[_Group] | None = None  # which will commit it

    async def commit(self, key: str, turn_id: str) -> list[CommittedTurn]:
        """Commit what can be committed of a memory key, together with other keys, and write it to the log.

        Args:
            key: the memory key, which no other job has at this time.
            turn_id: one of its turns. If it was committed before, perhaps by a process that was killed then, the turns
                of the key that are not settled are returned too.

        Returns:
            The turns that this call has committed, in order.

        Raises:
            Exception: the turns of this key cannot be committed, or the store failed.
        """
        self._next[key] = turn_id
        if self._task is None:
            self._task = asyncio.create_task(self._commit_next())
        group = await asyncio.shield(self._task)  # other keys are in it too
        if key in group.errors:
            raise group.errors[key]
        return group.turns.get(key, [])

    async def _commit_next(self) -> _Group:
        async with self._busy:
            wanted, self._next, self._task = self._next, {}, None
            group: _Group = await self._run(partial(self._commit_group, wanted))
            return group

    def _commit_group(self, wanted: Mapping[str, str]) -> _Group:
        name, errors, telemetry = self.plan.values.name, dict[str, Exception](), self.plan.commit_telemetry()
        done = self.store.commit_ready(wanted, telemetry.compute, name, errors)
        telemetry.report(done)
        earlier = [key for key, turn_id in wanted.items() if turn_id not in done and key not in errors]
        unsettled = self.store.load_unsettled(name, done, earlier) if done or earlier else []
        for path in dict.fromkeys(turn.log for turn in unsettled):
            flush(self.store, path, self.plan.log_max_bytes)
        return _Group(self._settle(unsettled), errors)

    def _settle(self, unsettled: list[UnsettledTurn]) -> dict[str, list[CommittedTurn]]:
        """Settle the turns without hooks to call, in one transaction."""
        by_key: dict[str, list[CommittedTurn]] = {}
        settled = []
        for turn in unsettled:
            calls = self.plan.hook_calls(turn.id, turn.record, self.store.read_values)
            is_audit = turn.record["auditStatus"] != "none"
            by_key.setdefault(turn.key, []).append(CommittedTurn(turn.id, is_audit, calls))
            if not calls:
                settled.append(turn.id)
        if settled:
            self.store.mark_settled(settled)
        return by_key
