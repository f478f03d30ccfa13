"""Audited turns a second of several ``safi worker`` processes on one PostgreSQL server.

Each lap has a database of its own, which another process has filled with answered turns of many memory keys. Their jobs
are held until all workers have registered. The lap begins when they become due, and ends when the last turn is settled.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, LiteralString

import psutil
import psycopg

from benchmarks.governance.instant import AT_ONCE, Instant
from benchmarks.governance.peers import environment
from benchmarks.governance.postgres import Server, server
from benchmarks.governance.rounds import calls, model
from benchmarks.report import spread
from experiments.filing import Record
from experiments.provenance import ROOT
from safi_agent import SafiChain, create_safi_chain

KEYS = 64  # memory keys, each of a user who asks one question after the other
POLL = 0.1  # seconds between counts of the turns that are left
PATIENCE = 300.0  # seconds without a settled turn after which the benchmark gives up
WORKER = (sys.executable, "-c", "from safi_agent.cli import app; app()", "worker", "--model", "openai:m")
_LEFT = "SELECT count(*) FROM safi_turns WHERE settled = 0"
_HOLD = "UPDATE procrastinate_jobs SET scheduled_at = 'infinity'"
_RELEASE = "UPDATE procrastinate_jobs SET scheduled_at = NULL"
_REGISTERED = "SELECT count(*) FROM procrastinate_workers"


def workers(folder: Path, counts: Sequence[int], turns: int, rounds: int, audit_ms: float) -> Record:
    """Laps of ``turns`` turns with these numbers of workers, in alternation; with this latency of an audit and with 0.

    Args:
        folder: for the logs.
        counts: the numbers of workers; the others are compared with the first one.
        turns: the number of turns of a lap.
        rounds: the number of laps for each number of workers and each latency.
        audit_ms: latency of the model, in milliseconds.
    """
    laps: list[Record] = []
    with server() as postgres:
        for latency in dict.fromkeys((audit_ms, 0.0)):
            with model(0, latency) as url:
                for i in range(rounds):
                    for count in counts if i % 2 == 0 else reversed(counts):
                        own = folder / f"lap{len(laps)}"
                        own.mkdir()
                        laps.append({"audit_ms": latency, **lap(postgres, url, own, count, turns)})
        with postgres.connect() as connection:
            version = connection.info.parameter_status("server_version")
    return {
        "workers": rows(laps),
        "turns": turns,
        "rounds": rounds,
        "keys": KEYS,
        "postgresql": version,
        "answers": turns * len(laps),
        "lost": sum(one["lost"] for one in laps),
        "repeated": sum(one["repeated"] for one in laps),
    }


def lap(postgres: Server, url: str, folder: Path, count: int, turns: int) -> Record:
    """One lap; ``folder`` has its log, and its name is that of its database."""
    name, log = folder.name, folder / "log.json"
    store = postgres.create(name)
    safi = create_safi_chain(Instant(), "unesco", store=store, log=log, audit_mode="worker", max_pending=None)
    asyncio.run(answer(safi, turns))
    with ExitStack() as stack:
        connection = stack.enter_context(postgres.connect(name))
        connection.execute(_HOLD)
        processes = stack.enter_context(running(count, store, log, f"{url}/{name}/v1"))
        wait(connection, _REGISTERED, count)
        before = cpu_seconds(processes), cpu_seconds([postgres.process])
        connection.execute(_RELEASE)
        start = time.perf_counter()
        wait(connection, _LEFT, 0)
        seconds = time.perf_counter() - start
        after = cpu_seconds(processes), cpu_seconds([postgres.process])
    safi.close(0)
    logged = [json.loads(line)["turnId"] for line in log.read_text().splitlines()]
    return {
        "count": count,
        "per_s": turns / seconds,
        "worker_cpu_ms": 1e3 * (after[0] - before[0]) / turns,
        "server_cpu_ms": 1e3 * (after[1] - before[1]) / turns,
        "lost": turns - len(set(logged)),
        "repeated": len(logged) - len(set(logged)) + calls(url)[name]["audit"] - turns,
    }


async def answer(safi: SafiChain, turns: int) -> None:
    """Answer ``turns`` turns of ``KEYS`` memory keys."""
    questions = iter(range(turns))

    async def ask(those: Iterator[int]) -> None:
        for i in those:
            config: Any = {"configurable": {"safi_key": f"user {i % KEYS}"}}
            await safi.ainvoke(f"Question {i}: should AI allocate vaccines?", config)

    await asyncio.gather(*(ask(questions) for _ in range(AT_ONCE)))


@contextmanager
def running(count: int, store: str, log: Path, model_url: str) -> Iterator[list[psutil.Process]]:
    """Context manager: ``safi worker`` processes, which are stopped as an operator stops them."""
    own = environment() | {"SAFI_STORE": store, "OPENAI_BASE_URL": model_url, "OPENAI_API_KEY": "none"}
    command = [*WORKER, "--log", str(log)]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # Each in a session of its own, like a service, because Linux shares a CPU that is short between sessions.
    processes = [subprocess.Popen(command, cwd=ROOT, env=own, start_new_session=True, **pipes) for _ in range(count)]
    try:
        yield [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            said = process.communicate()[1]
            if process.returncode:
                raise SystemExit(f"A worker has failed: {said}")


def number(connection: psycopg.Connection[Any], query: LiteralString) -> int:
    """The number that a query returns."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def wait(connection: psycopg.Connection[Any], query: LiteralString, expected: int) -> None:
    """Wait until a query returns this number.

    Raises:
        SystemExit: its result has not changed for ``PATIENCE`` seconds.
    """
    last, since = -1, time.monotonic()
    while (now := number(connection, query)) != expected:
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise SystemExit(f"{query!r} returns {now}, expected {expected}.")
        time.sleep(POLL)


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """The CPU seconds of these processes and of all that they have started."""
    seconds = 0.0
    for one in [one for process in processes for one in (process, *process.children(recursive=True))]:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            seconds += sum(one.cpu_times()[:2])
    return seconds


def rows(laps: Sequence[Record]) -> list[Record]:
    """One row for each latency and number of workers; the ratio is to the first number, in the same round.

    >>> def of(count, per_s):
    ...     return {"audit_ms": 0, "count": count, "per_s": per_s, "worker_cpu_ms": 1, "server_cpu_ms": 1}
    >>> [row["ratio"].median for row in rows([of(1, 10.0), of(4, 30.0), of(4, 50.0), of(1, 10.0)])]
    [1.0, 4.0]
    """
    made = []
    for latency in dict.fromkeys(one["audit_ms"] for one in laps):
        of_latency = [one for one in laps if one["audit_ms"] == latency]
        first = [one["per_s"] for one in of_latency if one["count"] == of_latency[0]["count"]]
        for count in dict.fromkeys(one["count"] for one in of_latency):
            own = [one for one in of_latency if one["count"] == count]
            ratios = [one["per_s"] / base for one, base in zip(own, first, strict=True)]
            figures = {name: median(one[name] for one in own) for name in ("per_s", "worker_cpu_ms", "server_cpu_ms")}
            made.append({"audit_ms": latency, "count": count, "ratio": spread(ratios), **figures})
    return made
