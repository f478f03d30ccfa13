"""SAFi with a model without latency: throughput of one process, memory, the backlog of audits, cost of signing."""

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
from unittest.mock import patch

from benchmarks.governance.instant import answer, governed
from safi_agent import SafiChain
from safi_agent.log import writer
from safi_agent.log.checkpoint import checkpoint_file, parse_checkpoint
from safi_agent.log.signed_note import parse_note
from safi_agent.log.signing_keys import VARIABLE, generate_key

BATCH = 1000  # turns between two waits for the audits, so that pending ones do not count as a leak
PENDING = 500  # limit of open audits in ``backlog``
AUDIT_S = 0.2  # seconds of an audit in ``backlog``; 32 run concurrently
SAMPLE_S = 0.25
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def audited(store: Path) -> int:
    """Number of turns whose audit is committed, counted by SQLite."""
    connection = sqlite3.connect(store)
    try:
        done = "SELECT count(*) FROM safi_turns WHERE status = 'done' AND ledger IS NOT NULL AND settled = 1"
        return int(connection.execute(done).fetchone()[0])
    finally:
        connection.close()


def lost(store: Path, log: Path, answers: int) -> int:
    """Number of answers without audit: the larger one of the store's and the log's."""
    lines = len(log.read_text().splitlines()) if log.is_file() else 0
    return answers - min(audited(store), lines)


def turns_per_second(folder: Path, turns: int) -> dict[str, Any]:
    """Answers per second while audits run, and turns per second including their audits."""
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
    """Current resident memory of this process in bytes; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def memory(folder: Path, turns: int) -> dict[str, Any]:
    """Resident memory after each tenth of the turns; the first one is a warm-up."""
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
    """Context manager that samples depth and age of the backlog and the resident memory on a thread."""
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
    """Turns that are answered faster than they are audited, with a limit of open audits."""
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


@contextmanager
def signed(seconds: list[float]) -> Iterator[None]:
    """Context manager: this process signs its logs, and adds the CPU time of each signing to ``seconds``."""
    sign = writer._sign

    def timed(*arguments: Any) -> None:
        start = time.thread_time()
        sign(*arguments)
        seconds.append(time.thread_time() - start)

    given = {VARIABLE: generate_key("example.com/benchmark").encode()}
    with patch.dict(os.environ, given), patch.object(writer, "_sign", timed):
        yield


def signing(folder: Path, turns: int) -> dict[str, Any]:
    """CPU time of a turn, and of signing in it: for turns that are written to the log one by one, and together."""
    rows, missing = [], 0
    for name in ("one", "together"):
        own, seconds = folder / name, list[float]()
        own.mkdir()
        with signed(seconds), governed(own) as safi:
            asyncio.run(answer(safi, 20))
            safi.drain(None)
            seconds.clear()
            cpu = time.process_time()
            if name == "one":
                for i in range(turns):
                    safi.invoke(f"Question {i}: should AI allocate vaccines?")
                    safi.drain(None)
            else:
                asyncio.run(answer(safi, turns))
                safi.drain(None)
            cpu = time.process_time() - cpu
        note = parse_note(checkpoint_file(own / "log.json").read_bytes())
        missing += turns + 20 - parse_checkpoint(note.text).size
        written = {"mode": name, "writes": len(seconds), "turn_cpu_ms": 1e3 * cpu / turns}
        rows.append(written | {"signing_cpu_ms": 1e3 * sum(seconds) / turns})
    return {"turns": turns, "rows": rows, "unsigned": missing, "lost": missing}
