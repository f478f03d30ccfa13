"""Latency added by governance with SAFi and with other libraries: ``python -m benchmarks.governance``.

``--quick`` runs it in half a minute, without the peers. Other options run N turns of SAFi only, with a model without
latency: ``--turns-per-second N`` measures the throughput of one process, ``--memory N`` whether its memory stays flat,
``--backlog N`` whether the limit of open audits holds when audits take longer than answers, ``--signing N`` the CPU
time of signing the log, and ``--tracing N`` that of an OpenTelemetry SDK that exports all turns. ``--workers 1 4``
compares numbers of ``safi worker`` processes on a PostgreSQL server, which it starts.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from benchmarks.governance import alone, traced
from benchmarks.governance import workers as queue
from benchmarks.governance.peers import PEERS, versions
from benchmarks.governance.report import markdown, per_turn, row, totals
from benchmarks.governance.rounds import Lap, Level, calls, enter, interleave, model
from benchmarks.report import publish
from experiments.filing import Record, origin
from experiments.provenance import installed

Laps = list[tuple[str, Level, Lap]]
MORE_PACKAGES = {"tracing": ["opentelemetry-sdk"], "workers": ["procrastinate", "psycopg"]}
LEAST = 20  # smallest number of turns in a lap


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.governance", description=__doc__)
    made.add_argument("--at-once", type=int, nargs="+", default=[1, 10, 100, 1000], metavar="N")
    made.add_argument("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    made.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="compared with LangChain and SAFi")
    made.add_argument("--answer-ms", type=float, default=50, help="latency of the model (default: %(default)s)")
    made.add_argument("--audit-ms", type=float, default=250, help="its latency for an audit (default: %(default)s)")
    made.add_argument("--quick", action="store_true", help="one round of few turns, without peers")
    made.add_argument("--turns-per-second", type=int, metavar="N", help="over N turns, model without latency")
    made.add_argument("--memory", type=int, metavar="N", help="over N turns, with the same model")
    made.add_argument("--backlog", type=int, metavar="N", help="over N turns, audits slower than answers")
    made.add_argument("--signing", type=int, metavar="N", help="over N turns, with a signed log")
    made.add_argument("--tracing", type=int, metavar="N", help="in laps of N turns, without and with an SDK")
    made.add_argument("--workers", type=int, nargs="+", metavar="N", help="numbers of workers to compare")
    made.add_argument("--turns", type=int, default=512, help="turns of a lap of --workers (default: %(default)s)")
    made.add_argument("--table", type=Path, metavar="FILE.md", help="rewrite its section on the cost of governance")
    made.add_argument("--out", type=Path, default=Path("results/governance"))
    return made


def beside(args: argparse.Namespace, folder: Path) -> Record:
    """Measure all contenders at all levels of concurrency."""
    levels = [Level(n, max(n, LEAST)) for n in args.at_once]
    laps: Laps = []
    with ExitStack() as stack:
        url = stack.enter_context(model(args.answer_ms, args.audit_ms))
        running, missing = enter(stack, url, folder, args.peers)
        laps += interleave(running, levels, args.rounds)
        asked = calls(url)
        used = {name: versions(name, "langchain-core", "openai") for name in args.peers if name in running}
    answers = {who: sum(len(lap["latencies"]) for w, _, lap in laps if w == who) for who in running}
    on_path = {who: per_turn(asked[who], answers[who]) for who in running}
    return {
        "rows": rows(laps, on_path, args.answer_ms),
        "missing": missing,
        "peers": used,
        "rounds": args.rounds,
        "answer_ms": args.answer_ms,
        "audit_ms": args.audit_ms,
        **audits(laps, folder),
    }


def rows(laps: Laps, on_path: dict[str, float], answer_ms: float) -> list[Record]:
    """Rows ordered by level, then by contender."""
    counted = [one for one in laps if one[2]["counted"]]
    made = []
    for level, those in groupby(counted, key=lambda one: one[1]):
        group = list(those)
        for who in dict.fromkeys(w for w, _, _ in group):
            own = [lap for w, _, lap in group if w == who]
            made.append(row(who, level, own, on_path[who], answer_ms))
    return made


def audits(laps: Laps, folder: Path) -> Record:
    """Whether each answer has its audit, according to the chains, the store and the log."""
    lost = 0
    found = totals(laps)
    for who, total in found.items():
        by_store = alone.lost(folder / f"{who}.db", folder / f"{who}.json", total["answers"])
        lost += max(by_store, total["answers"] - total["audited"])
    return {"answers": sum(total["answers"] for total in found.values()), "lost": lost}


def measured(args: argparse.Namespace, folder: Path) -> tuple[str, str, Record]:
    """The name of the record, its command, and the record."""
    start = "python -m benchmarks.governance"
    if args.turns_per_second:
        found = alone.turns_per_second(folder, args.turns_per_second)
        record = {"turns_per_second": found, "answers": found["turns"], "lost": found["lost"]}
        return "turns-per-second", f"{start} --turns-per-second {args.turns_per_second}", record
    if args.memory:
        found = alone.memory(folder, args.memory)
        record = {"memory": found, "answers": found["turns"], "lost": found["lost"]}
        return "memory", f"{start} --memory {args.memory}", record
    if args.backlog:
        found = alone.backlog(folder, args.backlog)
        record = {"backlog": found, "answers": found["turns"], "lost": found["lost"]}
        return "backlog", f"{start} --backlog {args.backlog}", record
    if args.signing:
        found = alone.signing(folder, args.signing)
        record = {"signing": found, "answers": 2 * found["turns"], "lost": found["lost"]}
        return "signing", f"{start} --signing {args.signing}", record
    if args.tracing:
        found = traced.tracing(folder, args.tracing, args.rounds, args.answer_ms, args.audit_ms)
        return "tracing", f"{start} --tracing {args.tracing} --rounds {args.rounds}", found
    if args.workers:
        found = queue.workers(folder, args.workers, args.turns, args.rounds, args.audit_ms)
        flags = f"--workers {' '.join(map(str, args.workers))} --turns {args.turns} --rounds {args.rounds}"
        return "workers", f"{start} {flags} --audit-ms {args.audit_ms:g}", found
    if args.quick:
        args.at_once, args.rounds, args.peers = [1, 10], 1, []
        return "quick", f"{start} --quick", beside(args, folder)
    flags = f"--at-once {' '.join(map(str, args.at_once))} --rounds {args.rounds} --peers {' '.join(args.peers)}"
    return "peers", f"{start} {flags}".rstrip(), beside(args, folder)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        name, command, record = measured(args, Path(folder))
    record = {"title": f"governance, {name}", **record, **origin(command, 0, "cpu")}
    packages = ["langchain-core", "openai", "sqlalchemy", "pydantic", *MORE_PACKAGES.get(name, ())]
    own = {package: installed(package) for package in packages}
    record["versions"] = own | {peer: next(iter(used.values())) for peer, used in record.get("peers", {}).items()}
    publish(record, args.out / f"{name}.json", markdown(record), args.table, f"governance {name}")
    if record["lost"]:
        raise SystemExit(f"{record['lost']} answers have no audit.")


if __name__ == "__main__":
    main()
