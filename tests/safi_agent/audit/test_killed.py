"""A process that is killed loses no audit, repeats none, and keeps their order."""

import os
import random
import signal
import sqlite3
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from safi_agent import create_safi_chain
from tests import forked
from tests.safi_agent.audit import invariants, worker
from tests.safi_agent.audit.invariants import MEMORY, ROWS
from tests.safi_agent.audit.worker import model
from tests.safi_agent.fakes import THREE

pytestmark = pytest.mark.slow

MOMENTS = int(os.environ.get("SAFI_KILLS", "5"))


def start(folder: Path, turns: int = 400) -> BaseProcess:
    return forked.start(worker.main, folder, turns)


def kill_after(folder: Path, seconds: float) -> None:
    """Kill it so long after its first answer."""
    process = start(folder)
    deadline = time.monotonic() + 60
    while not (folder / "seen").exists() or not (folder / "seen").stat().st_size:
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def check(folder: Path) -> int:
    """Everything that must hold after recovery; how many turns there are."""
    with sqlite3.connect(folder / "safi.db") as db:
        rows, memory = db.execute(ROWS).fetchall(), dict(db.execute(MEMORY).fetchall())
    db.close()
    return invariants.check(folder, rows, memory)


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_a_process_killed_at_a_random_moment_loses_and_repeats_no_audit(seed: int, tmp_path: Path) -> None:
    kill_after(tmp_path, random.Random(seed).uniform(0, 0.8))
    with create_safi_chain(
        model(0), THREE, store=f"sqlite:///{tmp_path}/safi.db", log=tmp_path / "log.json"
    ) as recovered:
        recovered.drain(60)
    assert check(tmp_path) > 0


def test_processes_killed_repeatedly_on_one_store_lose_and_repeat_no_audit(tmp_path: Path) -> None:
    for seed in range(3):
        (tmp_path / "seen").rename(tmp_path / f"seen{seed}") if (tmp_path / "seen").exists() else None
        kill_after(tmp_path, random.Random(100 + seed).uniform(0.05, 0.4))
    with create_safi_chain(
        model(0), THREE, store=f"sqlite:///{tmp_path}/safi.db", log=tmp_path / "log.json"
    ) as recovered:
        recovered.drain(60)
    assert check(tmp_path) > 0


def test_two_processes_share_a_store_and_a_log(tmp_path: Path) -> None:
    both = [start(tmp_path, 12) for _ in range(2)]
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    assert check(tmp_path) == 2 * 6 * 12


def test_a_second_process_finishes_the_audits_of_a_killed_one(tmp_path: Path) -> None:
    victim, survivor = start(tmp_path, 400), start(tmp_path, 30)
    while not (tmp_path / "seen").exists() or (tmp_path / "seen").stat().st_size < 4000:
        assert victim.is_alive()
        time.sleep(0.01)
    victim.kill()
    victim.join()
    survivor.join(120)
    assert survivor.exitcode == 0
    with create_safi_chain(
        model(0), THREE, store=f"sqlite:///{tmp_path}/safi.db", log=tmp_path / "log.json"
    ) as recovered:
        recovered.drain(60)
    assert check(tmp_path) >= 6 * 30
