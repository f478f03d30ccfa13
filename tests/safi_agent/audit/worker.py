"""A process under load that waits to be killed. It notes each turn, with one write, once its answer is in hand.

One that only audits answers nothing and ends at SIGTERM.
"""

import asyncio
import importlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from safi_agent import SafiChain, create_safi_chain
from safi_agent.audit import AuditMode
from safi_agent.cli.worker import work
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, approve

SCORES = (-1, 0, 0.5, 1)


def judged(text: str) -> str:
    """A ledger that differs from turn to turn, so that the order of commits shows in μ."""
    n = sum(map(ord, text.partition("<user_prompt>")[2].partition("</user_prompt>")[0]))
    rows = [
        {"value": v.name, "score": SCORES[(n + 3 * i) % 4], "confidence": 0.25 + (n % 4) / 8, "reason": str(n)}
        for i, v in enumerate(THREE.values)
    ]
    return json.dumps({"ledger": rows})


def ruled(text: str) -> str:
    return VIOLATION if "0?" in text else approve()


def model(delay: float = 0.004) -> Fake:
    return Fake(will=ruled, conscience=judged, delay=delay / 2, audit_delay=delay)


def chain(
    folder: Path, url: str | None = None, *, audit_mode: AuditMode = "in_process", delay: float = 0.004
) -> SafiChain:
    store, log = url or f"sqlite:///{folder}/safi.db", folder / "log.json"
    return create_safi_chain(model(delay), THREE, store=store, log=log, audit_mode=audit_mode, audit_backoff=0.05)


async def answer(safi: SafiChain, folder: Path, turns: int) -> None:
    seen = os.open(folder / "seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def ask_in_turn(name: str) -> None:
        for i in range(turns):
            key = f"k{(i + ord(name)) % 2}"
            answer = await safi.ainvoke(f"{name}{i}?", {"configurable": {"safi_key": key}})
            told = answer.response_metadata["safi"]
            os.write(seen, f"{told['turnId']} {told['willDecision']}\n".encode())

    await asyncio.gather(*map(ask_in_turn, "abcdef"))


def main(
    folder: Path, turns: int, url: str | None = None, role: str = "in_process", say: Callable[[object], object] = print
) -> None:
    if url:
        importlib.import_module("safi_agent.audit.worker").SILENT = 2.0  # a killed one is missed sooner
    if role == "audits":
        safi = chain(folder, url, delay=0.02)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        say("up")
        say(work(safi, 10))
        return
    safi = chain(folder, url, audit_mode="worker" if role == "worker" else "in_process")
    say("up")
    asyncio.run(answer(safi, folder, turns))
    safi.close(0 if role == "worker" else 60)
