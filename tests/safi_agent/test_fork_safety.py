"""Forks while the parent writes: no child hangs, and all that was answered is logged."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from safi_agent.fork_safety import ForkSafeLock, Stage, register
from tests.safi_agent.log_lines import lines

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHILDREN = int(os.environ.get("SAFI_FORKS", "6"))
TRAFFIC = """
import os, sys, threading, time
from contextlib import nullcontext
from safi_agent import create_safi_chain
from tests.safi_agent.fakes import *

folder, children = sys.argv[1], int(sys.argv[2])
model = Fake()
model._lock = nullcontext()  # a lock of the test's own model is not taken before a fork
safi = create_safi_chain(model, THREE, store=f"sqlite:///{folder}/s.db", log=f"{folder}/log.json")
safi.invoke("parent")  # what is imported at first use is imported now: a fork amid an import hangs in Python itself
over = threading.Event()
count = [1, 0]

def traffic(n):
    while not over.is_set():
        safi.invoke(f"parent {n}")
        count[n] += 1
        time.sleep(0.05)

threads = [threading.Thread(target=traffic, args=(n,)) for n in range(2)]
for thread in threads:
    thread.start()
failed = []
for i in range(children):
    if not (pid := os.fork()):
        import faulthandler
        faulthandler.dump_traceback_later(60, exit=True)
        safi.invoke(f"child {i}")
        os._exit(0 if safi.drain(50) == 1 else 3)
    failed += [(pid, code)] if (code := os.waitpid(pid, 0)[1]) else []
over.set()
for thread in threads:
    thread.join()
safi.drain(60)
print(sum(count), failed)
"""


def test_children_that_are_forked_amid_traffic_answer_and_audit(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", TRAFFIC, str(tmp_path), str(CHILDREN)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answered, _, failed = done.stdout.strip().partition(" ")
    assert failed == "[]", done.stderr
    logged = lines(tmp_path / "log.json")
    assert {r["userPrompt"] for r in logged} >= {f"child {i}" for i in range(CHILDREN)}
    assert len(logged) == int(answered) + CHILDREN
    assert [r["turn"] for r in logged] == list(range(1, len(logged) + 1))
    assert {r["auditStatus"] for r in logged} == {"complete"}


class Noted:
    """Writes down what it is asked, with the process it is in."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def before_fork(self) -> None:
        self.notes.append(f"{self.name} before")

    def after_fork_in_parent(self) -> None:
        self.notes.append(f"{self.name} parent")

    def after_fork(self) -> None:
        self.notes.append(f"{self.name} child")
        if self.name == "log":
            raise RuntimeError("the others are asked all the same")


def test_locks_are_taken_in_the_order_of_their_stages_and_given_back_in_the_opposite(tmp_path: Path) -> None:
    notes: list[str] = []
    kept = [Noted(name, notes) for name in ("store", "log", "work")]
    for one, stage in zip(kept, (Stage.STORE, Stage.LOG, Stage.WORK), strict=True):
        register(one, stage)
    before = ["work before", "log before", "store before"]
    if not (pid := os.fork()):
        right = notes == [*before, "store child", "log child", "work child"]
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert notes == [*before, "store parent", "log parent", "work parent"]
    notes.clear()
    del one
    kept.clear()
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)
    assert notes == []


def test_a_lock_that_another_thread_holds_is_waited_for_and_new_in_the_child() -> None:
    held, there = ForkSafeLock(Stage.LOG), threading.Event()
    state = ["whole"]

    def work() -> None:
        with held.lock:
            state[0] = "half done"
            there.set()
            threading.Event().wait(0.2)
            state[0] = "whole"

    thread = threading.Thread(target=work)
    thread.start()
    there.wait(20)
    if not (pid := os.fork()):
        os._exit(0 if state == ["whole"] and held.lock.acquire(timeout=5) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    thread.join()
    assert held.lock.acquire(timeout=5)
