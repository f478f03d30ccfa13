"""A process that is killed loses no audit, repeats none, and keeps their order."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from safi_agent import assess, create_safi_chain
from tests.safi_agent.audit.worker import model
from tests.safi_agent.fakes import THREE

ROOT = Path(__file__).parents[3]
MOMENTS = int(os.environ.get("SAFI_KILLS", "10"))


def start(folder: Path, turns: int = 400) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.safi_agent.audit.worker", str(folder), str(turns)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def kill_after(folder: Path, seconds: float) -> None:
    """Kill it so long after its first answer."""
    process = start(folder)
    deadline = time.monotonic() + 60
    while not (folder / "seen").exists() or not (folder / "seen").stat().st_size:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.json").read_text().splitlines()]


def check(folder: Path) -> int:
    """Everything that must hold after recovery; how many turns there are."""
    seen = dict(line.split() for line in (folder / "seen").read_text().splitlines() if line.count(" ") == 1)
    logged = records(folder)
    counts = Counter(record["turnId"] for record in logged)
    assert set(counts.values()) == {1}, "one line a turn"
    by_id = {record["turnId"]: record for record in logged}
    assert seen.keys() <= by_id.keys(), "every answer that was returned is in the log"
    with sqlite3.connect(folder / "safi.db") as db:
        rows = db.execute("SELECT id, status, logged, settled FROM safi_turns").fetchall()
        kept = {key: json.loads(mu) for key, mu in db.execute("SELECT key, mu FROM safi_memory")}
    db.close()
    assert {row[0] for row in rows} == by_id.keys()
    assert {row[1:] for row in rows} == {("done", 1, 1)}
    for key in {record["memoryKey"] for record in logged}:
        replay(key, [record for record in logged if record["memoryKey"] == key], kept[key])
    assert all(by_id[i]["willDecision"] == decision for i, decision in seen.items())
    return len(logged)


def replay(key: str, lane: list[dict[str, Any]], mu: dict[str, float]) -> None:
    """The lane's lines are in order, and μ is what they give when they are gone through one by one."""
    assert [record["turn"] for record in lane] == list(range(1, len(lane) + 1))
    before: dict[str, float] = {}
    audits = 0
    for record in lane:
        if record["willDecision"] == "approve":
            assert record["auditStatus"] == "complete"
            found = assess(record["conscienceLedger"], THREE, before)
            before, audits = found.mu, audits + 1
            assert (record["spiritScore"], record["drift"]) == (found.score, found.drift)
        assert (record["mu"], record["muTurn"]) == (before, audits)
    assert mu == before


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_killed_at_a_random_moment_it_loses_and_repeats_nothing(seed: int, tmp_path: Path) -> None:
    kill_after(tmp_path, random.Random(seed).uniform(0, 0.8))
    with create_safi_chain(
        model(0), THREE, store=f"sqlite:///{tmp_path}/safi.db", log=tmp_path / "log.json"
    ) as recovered:
        recovered.drain(60)
    assert check(tmp_path) > 0


def test_killed_again_and_again_on_one_store(tmp_path: Path) -> None:
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
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert check(tmp_path) == 2 * 6 * 12


def test_one_of_two_is_killed_and_the_other_finishes_its_work(tmp_path: Path) -> None:
    victim, survivor = start(tmp_path, 400), start(tmp_path, 30)
    while not (tmp_path / "seen").exists() or (tmp_path / "seen").stat().st_size < 4000:
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    survivor.communicate(timeout=100)
    assert survivor.returncode == 0
    with create_safi_chain(
        model(0), THREE, store=f"sqlite:///{tmp_path}/safi.db", log=tmp_path / "log.json"
    ) as recovered:
        recovered.drain(60)
    assert check(tmp_path) >= 6 * 30
