"""The turns of all memory keys that wait are committed together, and each key gets its own result."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safi_agent import Alert, SafiChain
from safi_agent.audit.group_commit import CommittedTurn, GroupCommit
from tests.safi_agent.fakes import ledger
from tests.safi_agent.postgres_server import Server

pytestmark = pytest.mark.slow
Judged = Callable[..., tuple[SafiChain, dict[str, str]]]


@pytest.fixture
def judged(database: str, make: Any) -> Judged:
    """A chain without a worker, and the id of a turn of each memory key that is judged and not committed."""

    def make_turns(keys: str, *, score: float = 1, **settings: Any) -> tuple[SafiChain, dict[str, str]]:
        safi = make(store=database, audit_mode="worker", **settings)
        ids = {}
        for key in keys:
            answer = safi.invoke("Why?", {"configurable": {"safi_key": key}})
            ids[key] = answer.response_metadata["safi"]["turnId"]
            safi._auditor.store.save_ledger(ids[key], json.loads(ledger(score=score))["ledger"], None, "judge")
        return safi, ids

    return make_turns


class Held:
    """Runs functions on threads, once it is released."""

    def __init__(self) -> None:
        self.began, self.release, self.runs = asyncio.Event(), asyncio.Event(), 0

    async def run(self, work: Callable[[], Any]) -> Any:
        self.runs += 1
        self.began.set()
        await self.release.wait()
        return await asyncio.to_thread(work)


def group_commit(safi: SafiChain, run: Any = asyncio.to_thread) -> GroupCommit:
    return GroupCommit(safi._auditor.plan, safi._auditor.store, run)


def unsettled(postgres: Server, database: str) -> int:
    rows = postgres.ask("SELECT count(*) FROM safi_turns WHERE settled = 0", database.rpartition("/")[2])
    return int(str(rows[0][0]))


def test_keys_that_come_while_a_group_is_committed_form_the_next_one(
    judged: Judged, postgres: Server, database: str, tmp_path: Path
) -> None:
    safi, ids = judged("abcd")

    async def commit() -> tuple[int, list[list[CommittedTurn]]]:
        held = Held()
        group = group_commit(safi, held.run)
        first = asyncio.create_task(group.commit("a", ids["a"]))
        await held.began.wait()
        rest = [asyncio.create_task(group.commit(key, ids[key])) for key in "bcd"]
        await asyncio.sleep(0)
        held.release.set()
        return held.runs, await asyncio.gather(first, *rest)

    runs, turns = asyncio.run(commit())
    assert runs == 1
    assert [[turn.id for turn in own] for own in turns] == [[ids[key]] for key in "abcd"]
    assert all(turn.is_audit and not turn.calls for own in turns for turn in own)
    assert {json.loads(line)["turnId"] for line in (tmp_path / "log.json").read_text().splitlines()} == {*ids.values()}
    assert unsettled(postgres, database) == 0


def test_a_key_that_cannot_be_committed_fails_alone(judged: Judged, postgres: Server, database: str) -> None:
    safi, ids = judged("ab")
    postgres.ask(f"UPDATE safi_turns SET body = '{{' WHERE id = '{ids['a']}'", database.rpartition("/")[2])

    async def commit() -> list[Any]:
        group = group_commit(safi)
        return await asyncio.gather(*(group.commit(key, ids[key]) for key in "ab"), return_exceptions=True)

    error, turns = asyncio.run(commit())
    assert isinstance(error, ValueError)
    assert [turn.id for turn in turns] == [ids["b"]]
    assert unsettled(postgres, database) == 1


def test_a_job_that_is_cancelled_cancels_no_other(judged: Judged, postgres: Server, database: str) -> None:
    safi, ids = judged("ab")

    async def commit() -> list[CommittedTurn]:
        held = Held()
        group = group_commit(safi, held.run)
        cancelled, other = (asyncio.create_task(group.commit(key, ids[key])) for key in "ab")
        await held.began.wait()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        held.release.set()
        return await other

    assert [turn.id for turn in asyncio.run(commit())] == [ids["b"]]
    assert unsettled(postgres, database) == 0


@pytest.mark.parametrize("score", [1, -1])
def test_what_a_killed_process_has_committed_is_settled_and_hooks_are_left_to_the_caller(
    score: float, judged: Judged, postgres: Server, database: str, tmp_path: Path
) -> None:
    alerts: list[Alert] = []
    safi, ids = judged("a", score=score, hooks=[alerts.append])
    plan, store = safi._auditor.plan, safi._auditor.store
    assert list(store.commit_ready(["a"], plan.commit_telemetry().compute, plan.values.name)) == [ids["a"]]
    (turn,) = asyncio.run(group_commit(safi).commit("a", ids["a"]))
    assert len((tmp_path / "log.json").read_text().splitlines()) == 1
    assert bool(turn.calls) == (score < 0)
    assert unsettled(postgres, database) == len(turn.calls[:1])
    assert asyncio.run(group_commit(safi).commit("a", ids["a"]))[1:] == []
