"""The same on PostgreSQL, with workers in processes of their own: whoever is killed, nothing is lost or repeated."""

import os
import random
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests import forked
from tests.safi_agent.audit import invariants, worker
from tests.safi_agent.audit.invariants import MEMORY, ROWS
from tests.safi_agent.postgres_server import Server

pytestmark = pytest.mark.slow

ORPHANS = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'"
MOMENTS = int(os.environ.get("SAFI_KILLS", "2"))


Started = tuple[BaseProcess, "Connection[object, object]"]


def start(folder: Path, url: str, role: str, turns: int = 400) -> Started:
    """The process and what it says."""
    said, say = forked.CONTEXT.Pipe(duplex=False)
    return forked.start(worker.main, folder, turns, url, role, say.send), said


def up(started: Started) -> Started:
    assert started[1].poll(60)
    assert started[1].recv() == "up"
    return started


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def wait_for(folder: Path, answers: int) -> None:
    deadline = time.monotonic() + 60
    while len(invariants.answered(folder)) < answers:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check(folder: Path, server: Server, url: str) -> int:
    name = url.rpartition("/")[2]
    return invariants.check(folder, server.ask(ROWS, name), dict(server.ask(MEMORY, name)))


def finish(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer for what is left, and wait for it."""
    monkeypatch.setattr("safi_agent.audit.worker.SILENT", 2.0)
    with worker.chain(folder, url) as recovered:
        recovered.drain(120)


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_the_answering_process_is_killed_at_a_random_moment(
    seed: int, tmp_path: Path, postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, _ = up(start(tmp_path, database, "in_process"))
    wait_for(tmp_path, 1)
    time.sleep(random.Random(seed).uniform(0, 0.8))
    kill(victim)
    finish(tmp_path, database, monkeypatch)
    assert check(tmp_path, postgres, database) > 0


def test_three_of_four_workers_are_killed_one_after_the_other_and_the_last_does_their_work(
    tmp_path: Path, postgres: Server, database: str
) -> None:
    name = database.rpartition("/")[2]
    workers = [up(one) for one in [start(tmp_path, database, "audits") for _ in range(4)]]
    answering, _ = up(start(tmp_path, database, "worker", 12))
    orphans = 0
    for i, one in enumerate(workers[:3], 1):
        wait_for(tmp_path, 18 * i)
        kill(one[0])
        orphans += int(str(postgres.ask(ORPHANS, name)[0][0]))
    answering.join(120)
    assert answering.exitcode == 0
    deadline = time.monotonic() + 120
    while postgres.ask("SELECT 1 FROM safi_turns WHERE settled = 0 LIMIT 1", name):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    left, said = workers[3]
    assert left.pid
    os.kill(left.pid, signal.SIGTERM)
    assert said.poll(120)
    assert 0 < said.recv() <= 72
    left.join(120)
    assert left.exitcode == 0
    assert orphans > 0
    assert check(tmp_path, postgres, database) == 72
