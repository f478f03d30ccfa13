"""Time and memory to verify and replay a long log: ``python -m benchmarks.log``.

Lines have fifteen values, a prompt and a draft, are sealed as by the chain, and are stored in files of 100 MB. Each row
is measured in a separate process for an independent memory peak; that of the shortest log is the baseline of Python and
its libraries. Replaying takes longer than verifying, since every line is parsed as JSON and its ledger assessed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import publish
from experiments.filing import Record, origin, source
from experiments.pages import grid
from experiments.provenance import installed
from safi_agent import Assessment, assess, load_values
from safi_agent.log.hash_chain import beginning, seal
from safi_agent.log.key import key_id
from safi_agent.log.replay import replay
from safi_agent.log.rotation import log_files, rotate
from safi_agent.log.verify import verify
from safi_agent.record import Measure
from safi_agent.store import Anchor

KEY = b"benchmark" * 4
FULL = 100_000_000  # bytes
VALUES = load_values("unesco")
ROWS = [{"value": v.name, "score": 0.5, "confidence": 0.9, "reason": "A sentence of the judge."} for v in VALUES.values]
AT_REST = 500  # turns after which μ has converged: 0.9 to the power of 500 is negligible
SAME = json.dumps(
    {
        "userPrompt": "Should AI allocate vaccines?",
        "intellectDraft": "An answer of some length. " * 20,
        "conscienceLedger": ROWS,
        "valueSet": VALUES.name,
        "measure": Measure().parameters(VALUES),
    }
)
Work = Callable[[Path], int]


def record(turn: int, found: Assessment) -> str:
    """A line of the log without its seal; the constant parts are serialized once."""
    own = {"turn": turn, "turnId": f"turn-{turn}", "memoryKey": "unesco", "mu": found.mu, "muTurn": turn}
    own |= {"spiritScore": found.score, "drift": found.drift, "driftRaw": found.drift_raw}
    return f"{json.dumps(own)[:-1]}, {SAME[1:]}"


def make(log: Path, lines: int) -> Anchor:
    """Write ``lines`` lines of one memory key; returns what a store would keep of them."""
    tip, found, size = beginning(), assess(ROWS, VALUES), 0
    file = log.open("wb")
    for turn in range(1, lines + 1):
        line, tip = seal(record(turn, found), tip, KEY)
        size += file.write(line)
        if turn < AT_REST:
            found = assess(ROWS, VALUES, found.mu)
        if size > FULL and turn < lines:
            file.close()
            rotate(log)
            file, size = log.open("wb"), 0
    file.close()
    return Anchor(size, tip.lines, tip.mac, key_id(KEY))


def verified(log: Path) -> int:
    verdict = verify(log, KEY, Anchor(*json.loads(log.with_suffix(".anchor").read_text())))
    assert not verdict.faulty, verdict.faults
    return verdict.lines


def replayed(log: Path) -> int:
    found = replay(log, {VALUES.fingerprint: VALUES}.get)
    assert not found.faulty, found.faults
    return found.lines


WORK: dict[str, Work] = {"verify": verified, "replay": replayed}


def measure(what: str, log: Path) -> dict[str, float]:
    """Measure in this process: seconds, and the peak of its memory in MB."""
    start, cpu = time.perf_counter(), time.process_time()
    lines = WORK[what](log)
    spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    return {"lines": lines, **spent, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def measured(what: str, log: Path) -> dict[str, float]:
    """``measure`` in a separate process."""
    command = [sys.executable, "-m", "benchmarks.log", "--measure", what, str(log)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def markdown(record: Record) -> str:
    headings = ("command", "lines", "GB", "seconds of CPU", "lines/s of CPU", "peak memory, MB")
    rows = [
        [
            f"safi {row['what']}",
            f"{row['lines']:,}",
            f"{row['bytes'] / 1e9:.2f}",
            f"{row['cpu']:.1f}",
            f"{row['lines'] / row['cpu']:,.0f}",
            f"{row['peak_mb']:.0f}",
        ]
        for row in record["rows"]
    ]
    return f"{grid(headings, rows)}\n{source(record)}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.log", description=__doc__)
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--measure", nargs=2, metavar=("COMMAND", "LOG"), help="measure one of the two")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="rewrite its section on long logs")
    parser.add_argument("--out", type=Path, default=Path("results/governance/log.json"))
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return
    rows = []
    for lines in args.lines:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log.json"
            log.with_suffix(".anchor").write_text(json.dumps(make(log, lines)))
            size = sum(file.stat().st_size for file in log_files(log))
            rows += [{"what": what, "bytes": size, **measured(what, log)} for what in WORK]
    command = f"python -m benchmarks.log --lines {' '.join(map(str, args.lines))}"
    record = {"title": "log", "rows": rows, **origin(command, 0, "cpu")}
    record["versions"] = {"pydantic": installed("pydantic")}
    publish(record, args.out, markdown(record), args.table, "log")


if __name__ == "__main__":
    main()
