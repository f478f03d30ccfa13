"""One process in which contenders run: ``python -m benchmarks.governance.runner MODULE URL FOLDER``.

It runs with the interpreter of the environment in which the contenders of this module are installed, and has no other
dependencies. Each line of JSON on stdin requests a lap; the result is a line of JSON on stdout.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.governance.server import ANSWER, more_files


class Contender(NamedTuple):
    """A function that answers; ``settle`` waits for work after the answers, and returns its amount."""

    turn: Callable[[str], Awaitable[str]]
    settle: Callable[[], int] = lambda: 0


async def lap(contender: Contender, turns: int, at_once: int) -> dict[str, Any]:
    """Run ``turns`` turns with constant concurrency: each client sends its next question after an answer."""
    questions = iter(range(turns))
    latencies: list[float] = []

    async def ask() -> None:
        for i in questions:
            start = time.perf_counter()
            said = await contender.turn(f"Question {i}: should AI allocate vaccines?")
            latencies.append(1e3 * (time.perf_counter() - start))
            if said.strip() != ANSWER.strip():
                raise ValueError(f"Expected the model's answer, got {said!r}.")

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask() for _ in range(at_once)))
    return {
        "latencies": latencies,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def asked(contenders: dict[str, Contender], request: dict[str, Any], loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """Run a lap, then its remaining work, so that it does not affect the next one."""
    contender = contenders[request["who"]]
    done = loop.run_until_complete(lap(contender, request["turns"], request["at_once"]))
    start, cpu = time.perf_counter(), time.process_time()
    audited = contender.settle()
    return done | {
        "audited": audited,
        "settle_seconds": time.perf_counter() - start,
        "settle_cpu_seconds": time.process_time() - cpu,
    }


def main(module: str, url: str, folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps prints of libraries out of the protocol
    more_files()
    contenders = importlib.import_module(module).contenders(url, Path(folder))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    print(json.dumps({"contenders": list(contenders)}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            told = asked(contenders, json.loads(line), loop)
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
