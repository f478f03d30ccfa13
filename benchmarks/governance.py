"""What governing adds to an answer: ``python -m benchmarks.governance``.

A model that takes 50 ms plays Intellect and Will, and 500 ms as Conscience; the store is a file, the outbox durable.
The overhead of a turn is its latency less the time inside the two model calls: LangChain's own way to a model is in it,
and ``two bare calls`` show how much that is. The rows take turns, so that a busy machine is busy for all of them.
CPU is that of the thread that waits for the answer. With 200 at once, latency counts from the start of all.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from benchmarks.report import origin, save, source
from experiments.pages import grid, rewrite
from experiments.provenance import installed
from safi_agent import SafiChain, create_safi_chain, load_values

VALUES = load_values("unesco")
ROWS = [{"value": v.name, "score": 0.5, "confidence": 0.9, "reason": "A sentence."} for v in VALUES.values]
inside: ContextVar[list[float] | None] = ContextVar("inside", default=None)


class Timed(BaseChatModel):
    """Takes its time, and says how long it took."""

    answer_s: float = 0.05
    audit_s: float = 0.5

    @property
    def _llm_type(self) -> str:
        return "timed"

    def _reply(self, messages: Any) -> tuple[str, float]:
        system = str(messages[0].text)
        if system.startswith("You are the Conscience"):
            return json.dumps({"ledger": ROWS}), self.audit_s
        if system.startswith("You are the Will"):
            return '{"decision": "approve", "reason": "Fine.", "gates": []}', self.answer_s
        return "An answer of some length. " * 20 + "<reflection>A thought.</reflection>", self.answer_s

    def _result(self, text: str, start: float) -> ChatResult:
        if (spent := inside.get()) is not None:
            spent.append(time.perf_counter() - start)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        start = time.perf_counter()
        text, wait = self._reply(messages)
        time.sleep(wait)
        return self._result(text, start)

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        start = time.perf_counter()
        text, wait = self._reply(messages)
        await asyncio.sleep(wait)
        return self._result(text, start)


class Lap(NamedTuple):
    """One turn, in milliseconds."""

    latency: float
    overhead: float
    cpu: float


def lap(turn: Callable[[], object]) -> Lap:
    spent: list[float] = []
    token = inside.set(spent)
    start, cpu = time.perf_counter(), time.thread_time()
    turn()
    latency, cpu = time.perf_counter() - start, time.thread_time() - cpu
    inside.reset(token)
    return Lap(1e3 * latency, 1e3 * (latency - sum(spent)), 1e3 * cpu)


def quantile(values: Sequence[float], q: float) -> float:
    """
    >>> quantile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def sequential(folder: Path, turns: int) -> dict[str, list[Lap]]:
    """Turns one after the other, sync and awaited, beside two bare calls."""
    model = Timed()
    loop = asyncio.new_event_loop()

    async def bare() -> None:
        await model.ainvoke("a")
        await model.ainvoke("b")

    with chain(folder, model) as safi:
        ways: dict[str, Callable[[], object]] = {
            "two bare calls": lambda: (model.invoke("a"), model.invoke("b")),
            "two bare calls, awaited": lambda: loop.run_until_complete(bare()),
            "invoke": lambda: safi.invoke("Should AI allocate vaccines?"),
            "ainvoke": lambda: loop.run_until_complete(safi.ainvoke("Should AI allocate vaccines?")),
        }
        for turn in ways.values():
            turn()
        laps: dict[str, list[Lap]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, turn in ways.items():
                laps[name].append(lap(turn))
        audited = safi.drain(120)
    loop.close()
    assert audited == 2 * (turns + 1), audited
    return laps


def chain(folder: Path, model: Timed) -> SafiChain:
    return create_safi_chain(model, VALUES, store=f"sqlite:///{folder}/safi.db", log=folder / "log.json")


def concurrent(folder: Path, turns: int, rounds: int) -> dict[str, float]:
    """So many turns at once, some times over: how long an answer takes, and whether any audit is lost."""
    latencies: list[float] = []

    async def one(safi: SafiChain, i: int) -> None:
        start = time.perf_counter()
        await safi.ainvoke(f"Question {i}?")
        latencies.append(1e3 * (time.perf_counter() - start))

    async def all_rounds(safi: SafiChain) -> None:
        for _ in range(rounds):
            await asyncio.gather(*(one(safi, i) for i in range(turns)))

    start = time.perf_counter()
    with chain(folder, Timed()) as safi:
        asyncio.run(all_rounds(safi))
        answered = time.perf_counter() - start
        audited = safi.drain(600)
    lines = len((folder / "log.json").read_text().splitlines())
    assert audited == lines == turns * rounds, (audited, lines)
    return {
        "turns": turns * rounds,
        "p50_ms": quantile(latencies, 0.5),
        "p99_ms": quantile(latencies, 0.99),
        "answers_per_s": turns * rounds / answered,
        "audits_per_s": turns * rounds / (time.perf_counter() - start),
        "lost": turns * rounds - lines,
    }


def markdown(record: dict[str, Any]) -> str:
    note = (
        "A model that takes 50 ms as Intellect and as Will, 500 ms as Conscience; the outbox in a file. Overhead: "
        "latency less the time inside the two model calls; LangChain's own way to a model is in it, and is all of the "
        "bare calls'.\n"
    )
    headings = ("way", "latency p50, ms", "overhead p50", "overhead p99", "CPU p50")
    rows = [[r["way"], *(f"{r[k]:.2f}" for k in ("latency", "p50", "p99", "cpu"))] for r in record["rows"]]
    many = record["concurrent"]
    at_once = (
        f"{record['at_once']} at once, {many['turns']} turns: latency p50 {many['p50_ms']:.0f} ms, p99 "
        f"{many['p99_ms']:.0f} ms; {many['answers_per_s']:.0f} answers/s, {many['audits_per_s']:.0f} audits/s; "
        f"{many['lost']} lost.\n"
    )
    return "\n".join([note, grid(headings, rows), at_once, source(record)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.governance", description=__doc__)
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="rewrite its part on what governing costs")
    parser.add_argument("--out", type=Path, default=Path("results/governance/overhead.json"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        laps = sequential(Path(one), args.turns)
        many = concurrent(Path(other), args.at_once, args.rounds)
    rows = [
        {
            "way": way,
            "latency": quantile([t.latency for t in taken], 0.5),
            "p50": quantile([t.overhead for t in taken], 0.5),
            "p99": quantile([t.overhead for t in taken], 0.99),
            "cpu": quantile([t.cpu for t in taken], 0.5),
        }
        for way, taken in laps.items()
    ]
    command = f"python -m benchmarks.governance --turns {args.turns} --at-once {args.at_once} --rounds {args.rounds}"
    record = {"title": "governance", "rows": rows, "concurrent": many, "at_once": args.at_once}
    record |= origin(command, 0, "cpu")
    record["versions"] = {name: installed(name) for name in ("langchain-core", "sqlalchemy", "pydantic")}
    save(record, args.out)
    print(markdown(record))
    if args.table:
        rewrite(args.table, "governance", markdown(record))


if __name__ == "__main__":
    main()
