"""SAFi without a model to wait for: turns per second in one process, its memory over many turns, its backlog."""

import asyncio
import gc
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.governance.instant import answer, governed
from safi_agent import SafiChain

BATCH = 1000  # turns after which the audits are waited for, so that what waits is not taken for a leak
PENDING = 500  # the bound of the backlog, for turns that are answered quicker than they are audited
AUDIT_S = 0.2  # seconds that an audit takes then; 32 run at once
SAMPLE_S = 0.25
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def audited(store: Path) -> int:
    """Turns whose audit is committed, as SQLite itself counts them."""
    connection = sqlite3.connect(store)
    try:
        done = "SELECT count(*) FROM safi_turns WHERE status = 'done' AND ledger IS NOT NULL AND settled = 1"
        return int(connection.execute(done).fetchone()[0])
    finally:
        connection.close()


def lost(store: Path, log: Path, answers: int) -> int:
    """How many answers have no audit: by the store, or by the log, whichever lacks more."""
    lines = len(log.read_text().splitlines()) if log.is_file() else 0
    return answers - min(audited(store), lines)


def turns_per_second(folder: Path, turns: int) -> dict[str, Any]:
    """Answers a second while their audits are under way, and turns a second from the question to the audit."""
    with governed(folder) as safi:
        asyncio.run(answer(safi, 20))
        safi.drain(None)
        start, cpu = time.perf_counter(), time.process_time()
        asyncio.run(answer(safi, turns))
        answered, answered_cpu = time.perf_counter() - start, time.process_time() - cpu
        safi.drain(None)
        carried, carried_cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "turns": turns,
        "answers_per_s": turns / answered,
        "audited_per_s": turns / carried,
        "answer_cpu_ms": 1e3 * answered_cpu / turns,
        "turn_cpu_ms": 1e3 * carried_cpu / turns,
        "lost": lost(folder / "safi.db", folder / "log.json", turns + 20),
    }


def resident() -> int:
    """Bytes of this process that are in memory now; Linux alone tells."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def memory(folder: Path, turns: int) -> dict[str, Any]:
    """Resident memory after each tenth of the turns; what the first takes is not growth."""
    marks: list[tuple[int, int]] = []
    step = max(1, turns // 10)
    done = 0
    with governed(folder) as safi:
        while done < turns:
            wanted = min(turns, done + step)
            while done < wanted:
                batch = min(BATCH, wanted - done)
                asyncio.run(answer(safi, batch))
                safi.drain(None)
                done += batch
            gc.collect()
            marks.append((done, resident()))
    return {
        "turns": turns,
        "resident": marks,
        "half": marks[(len(marks) - 1) // 2][1],
        "end": marks[-1][1],
        "lost": lost(folder / "safi.db", folder / "log.json", turns),
    }


@contextmanager
def sampled(safi: SafiChain, marks: list[dict[str, Any]]) -> Iterator[None]:
    """Within it, depth and age of the backlog and the resident memory are sampled on a thread."""
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            depth, oldest = safi.backlog()
            marks.append({"depth": depth, "oldest": oldest or 0.0, "resident": resident()})

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def backlog(folder: Path, turns: int) -> dict[str, Any]:
    """Turns that are answered quicker than they are audited, with a bound on the audits that are open."""
    marks: list[dict[str, Any]] = []
    with governed(folder, audit_s=AUDIT_S, max_pending=PENDING) as safi:
        asyncio.run(answer(safi, PENDING))
        with sampled(safi, marks):
            asyncio.run(answer(safi, turns - PENDING))
        drained = safi.drain(None)
    half = marks[len(marks) // 2 :]
    return {
        "turns": turns,
        "bound": PENDING,
        "audit_ms": 1e3 * AUDIT_S,
        "deepest": max(mark["depth"] for mark in marks),
        "oldest_s": max(mark["oldest"] for mark in marks),
        "half": half[0]["resident"],
        "end": half[-1]["resident"],
        "left": drained.left,
        "lost": lost(folder / "safi.db", folder / "log.json", turns),
    }
