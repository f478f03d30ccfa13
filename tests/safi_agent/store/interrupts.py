"""A process that goes on after Ctrl-C: many interrupts at random moments, and then it must still work.

``main`` prints what is wrong, one line each, and nothing else.
"""

import asyncio
import ctypes
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from safi_agent import SafiChain, create_safi_chain
from safi_agent.store import Commit, JudgedTurn, Memory, open_store
from tests.safi_agent.fakes import THREE, Fake

TURNS = 12
OF_STORE = 25
ROWS = "SELECT id, status, logged, settled FROM safi_turns"
V = sha256(b"{}").hexdigest()


def by_signal(thread: int) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def by_exception(thread: int) -> None:
    """In any thread, at the next instruction of its Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))


def under_fire(work: Callable[[], None], seed: int, shoot: Callable[[int], None], most: float) -> None:
    """Do this again and again, and interrupt it at random moments."""
    chance, over = random.Random(seed), threading.Event()
    target = threading.get_ident()

    def fire() -> None:
        while not over.wait(chance.uniform(0, most)):
            shoot(target)

    thread = threading.Thread(target=fire, daemon=True)
    try:
        thread.start()
        work()
    except KeyboardInterrupt:
        pass
    while thread.is_alive():
        with suppress(KeyboardInterrupt):
            over.set()
            thread.join()
    with suppress(KeyboardInterrupt):
        time.sleep(0.01)  # the last one may be on its way


def chained(folder: Path, seeds: int, *, awaited: bool) -> str | None:
    safi = create_safi_chain(Fake(), THREE, store=f"sqlite:///{folder}/s.db", log=folder / "log.json")
    answered: set[str] = set()

    def turn(name: str) -> None:
        told = asyncio.run(safi.ainvoke(name)) if awaited else safi.invoke(name)
        answered.add(told.response_metadata["safi"]["turnId"])

    def work() -> None:
        for i in range(TURNS):
            with suppress(KeyboardInterrupt):
                turn(str(i))

    for seed in range(seeds):
        under_fire(work, seed, by_signal, 0.06)
        start = time.monotonic()
        turn("after")
        if (took := time.monotonic() - start) > 5:
            return f"seed {seed}: a turn took {took:.1f} s"
    return _unfinished(safi, folder, answered)


def _unfinished(safi: SafiChain, folder: Path, answered: set[str]) -> str | None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        safi.drain(5)
        with sqlite3.connect(folder / "s.db") as db:
            rows = db.execute(ROWS).fetchall()
        db.close()
        if {row[1:] for row in rows} == {("done", 1, 1)}:
            missing = answered - {row[0] for row in rows}
            return f"{len(missing)} answers are not in the store" if missing else None
        safi._auditor.beat()  # type: ignore[attr-defined]
    return f"left: {[row for row in rows if row[1:] != ('done', 1, 1)]}"


def keep(row: JudgedTurn, before: Memory) -> Commit:
    return Commit({"id": row.id}, before._replace(mu_turn=before.mu_turn + 1))


def stored(folder: Path, seeds: int, *, memory: bool) -> str | None:
    """The store by itself, while another thread works on it; each turn that was given a number must be there."""
    store = open_store(None if memory else f"sqlite:///{folder}/s.db")
    store.save_values(V, "{}")
    numbers: dict[str, int] = {}
    over, slowest = threading.Event(), [0.0]

    def add(key: str) -> None:
        own = str(uuid4())
        numbers[own], _ = store.add_turn({"id": own, "key": key, "valueSet": "s"}, V, "", audit=True)
        store.save_ledger(own, [], None)
        store.commit_ready([key], keep)

    def beside() -> None:
        while not over.is_set():
            start = time.monotonic()
            add("beside")
            slowest[0] = max(slowest[0], time.monotonic() - start)

    def work() -> None:
        for _ in range(OF_STORE):
            with suppress(KeyboardInterrupt):
                add("under fire")

    thread = threading.Thread(target=beside, daemon=True)
    thread.start()
    for seed in range(seeds):
        under_fire(work, seed, by_exception, 0.004)
        add("under fire")
    over.set()
    thread.join(30)
    lost = [own for own, number in numbers.items() if (found := store.find_turn(own)) is None or found[0] != number]
    if thread.is_alive() or lost:
        return f"the other thread is stuck: {thread.is_alive()}, lost: {lost}"
    return f"the other thread waited {slowest[0]:.1f} s" if slowest[0] > 5 else None


KINDS: dict[str, Callable[[Path, int], str | None]] = {
    "sync": lambda folder, seeds: chained(folder, seeds, awaited=False),
    "async": lambda folder, seeds: chained(folder, seeds, awaited=True),
    "file": lambda folder, seeds: stored(folder, seeds, memory=False),
    "memory": lambda folder, seeds: stored(folder, seeds, memory=True),
}


def main(folder: str, kind: str, seeds: str) -> None:
    if wrong := KINDS[kind](Path(folder), int(seeds)):
        print(wrong)
    sys.stdout.flush()
    os._exit(0)
