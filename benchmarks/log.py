"""Time and memory to verify and replay a long log: ``python -m benchmarks.log``, with signatures ``--signed``.

Lines have fifteen values, a prompt and a draft, are sealed as by the chain, and are stored in files of 100 MB. Each row
is measured in a separate process for an independent memory peak; that of the shortest log is the baseline of Python and
its libraries. Replaying takes longer than verifying, since every line is parsed as JSON and its ledger assessed.

With ``--signed``, the log has a signed checkpoint, and the commands ``safi verify --public-key`` and ``safi prove`` are
measured as a whole, in a folder without the store and the key of the hash chain.
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
from statistics import median

from benchmarks.report import publish
from experiments.filing import Record, origin, source
from experiments.pages import grid
from experiments.provenance import installed
from safi_agent import Assessment, assess, load_values
from safi_agent.contents import SALT_BYTES
from safi_agent.log.hash_chain import beginning, seal
from safi_agent.log.key import key_id
from safi_agent.log.proofs import prove_turn
from safi_agent.log.replay import replay
from safi_agent.log.rotation import log_files, rotate
from safi_agent.log.signing import SignedState, sign_lines
from safi_agent.log.signing_keys import generate_key
from safi_agent.log.tree_files import read_lines
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
        "salt": "5a" * SALT_BYTES,
    }
)
# On Linux the peak memory of a process includes that of its parent when it was started: a small one starts it.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, process.returncode, used = os.wait4(process.pid, 0)
found = {"status": process.returncode, "seconds": time.perf_counter() - start}
print(json.dumps(found | {"cpu": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}))
"""
PROVEN = 20  # turns over which the time of a proof is the median
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


def commanded(*arguments: str) -> dict[str, float]:
    """Run a command of ``safi`` in a process of its own: seconds, CPU time, and its peak memory in MiB.

    Raises:
        RuntimeError: the command failed.
    """
    command = [sys.executable, "-c", "from sal_cli import safi; safi()", *arguments]
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *command], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    if found.pop("status"):
        raise RuntimeError(f"safi {' '.join(arguments)}: {done.stderr}")
    return found


def signed(folder: Path, lines: int) -> list[Record]:
    """Sign a log, and measure the commands that need nothing but its public key."""
    log, key, public = folder / "log.json", generate_key("example.com/benchmark"), folder / "key.pub"
    make(log, lines)
    public.write_text(f"{key.public}\n")
    sign_lines(str(log), key, SignedState(None, "", 0, []), read_lines(log_files(log)))
    size = sum(file.stat().st_size for file in log_files(log))
    verify = commanded("verify", str(log), "--public-key", str(public))
    proofs = []
    for turn in range(1, lines + 1, max(1, lines // PROVEN)):
        start = time.perf_counter()
        prove_turn(log, f"turn-{turn}")
        proofs.append(1e3 * (time.perf_counter() - start))
    prove = commanded("prove", f"turn-{lines // 2}", str(log)) | {"proof_ms": median(proofs)}
    return [
        {"what": what, "lines": lines, "bytes": size, **found} for what, found in (("verify", verify), ("prove", prove))
    ]


def signed_markdown(record: Record) -> str:
    names = {"verify": "safi verify --public-key", "prove": "safi prove, one turn"}
    headings = ("command", "lines", "GB", "seconds of CPU", "peak memory, MiB", "a proof alone, ms")
    rows = [
        [
            names[row["what"]],
            f"{row['lines']:,}",
            f"{row['bytes'] / 1e9:.2f}",
            f"{row['cpu']:.1f}",
            f"{row['peak_mib']:.0f}",
            f"{row['proof_ms']:.1f}" if "proof_ms" in row else "",
        ]
        for row in record["rows"]
    ]
    return f"{grid(headings, rows)}\n{source(record)}"


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
    parser.add_argument("--signed", action="store_true", help="verify and prove with a public key instead")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="rewrite its section on long logs")
    parser.add_argument("--out", type=Path, default=Path("results/governance"))
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return
    command = f"python -m benchmarks.log{' --signed' * args.signed} --lines {' '.join(map(str, args.lines))}"
    rows = []
    for lines in args.lines:
        with tempfile.TemporaryDirectory() as folder:
            if args.signed:
                rows += signed(Path(folder), lines)
                continue
            log = Path(folder) / "log.json"
            log.with_suffix(".anchor").write_text(json.dumps(make(log, lines)))
            size = sum(file.stat().st_size for file in log_files(log))
            rows += [{"what": what, "bytes": size, **measured(what, log)} for what in WORK]
    name = "log-signed" if args.signed else "log"
    record = {"title": name, "rows": rows, **origin(command, 0, "cpu")}
    record["versions"] = {package: installed(package) for package in ("pydantic", "cryptography")}
    text = signed_markdown(record) if args.signed else markdown(record)
    publish(record, args.out / f"{name}.json", text, args.table, name)


if __name__ == "__main__":
    main()
