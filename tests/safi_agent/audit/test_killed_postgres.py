"""The same on PostgreSQL, with workers in processes of their own: whoever is killed, nothing is lost or repeated."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.safi_agent.audit import replayed, worker
from tests.safi_agent.audit.replayed import MEMORY, ROWS
from tests.safi_agent.postgres_server import Server

ROOT = Path(__file__).parents[3]
MOMENTS = int(os.environ.get("SAFI_KILLS", "2"))
Process = subprocess.Popen[str]


def start(folder: Path, url: str, role: str, turns: int = 400) -> Process:
    command = [sys.executable, "-m", "tests.safi_agent.audit.worker", str(folder), str(turns), url, role]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def up(process: Process) -> Process:
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def kill(process: Process) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def wait_for(folder: Path, answers: int) -> None:
    deadline = time.monotonic() + 60
    while len(replayed.answered(folder)) < answers:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check(folder: Path, server: Server, url: str) -> int:
    name = url.rpartition("/")[2]
    return replayed.check(folder, server.ask(ROWS, name), dict(server.ask(MEMORY, name)))


def finish(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer for what is left, and wait for it."""
    monkeypatch.setattr("safi_agent.audit.worker.SILENT", 2.0)
    with worker.chain(folder, url) as recovered:
        recovered.drain(120)


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_the_answering_process_is_killed_at_a_random_moment(
    seed: int, tmp_path: Path, postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = up(start(tmp_path, database, "here"))
    wait_for(tmp_path, 1)
    time.sleep(random.Random(seed).uniform(0, 0.8))
    kill(victim)
    finish(tmp_path, database, monkeypatch)
    assert check(tmp_path, postgres, database) > 0


def test_one_of_two_workers_is_killed_amid_audits_and_the_other_does_its_work(
    tmp_path: Path, postgres: Server, database: str
) -> None:
    workers = [up(start(tmp_path, database, "audits")) for _ in range(2)]
    answering = start(tmp_path, database, "worker", 12)
    wait_for(tmp_path, 24)
    kill(workers[0])
    name = database.rpartition("/")[2]
    orphans = postgres.ask("SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'", name)
    answering.communicate(timeout=120)
    assert answering.returncode == 0
    deadline = time.monotonic() + 120
    while postgres.ask("SELECT 1 FROM safi_turns WHERE settled = 0 LIMIT 1", name):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers[1].send_signal(signal.SIGTERM)
    told, _ = workers[1].communicate(timeout=120)
    assert workers[1].returncode == 0
    assert 0 < int(told) <= 72
    assert orphans[0][0] > 0
    assert check(tmp_path, postgres, database) == 72
