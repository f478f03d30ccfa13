"""Memory of training with one method: ``python -m benchmarks.memory --workload mlp --method sal``.

Prints one line of JSON, in bytes: ``kept`` by the method between steps, the ``peak`` of torch's allocator, and the
``rss`` of the process. ``benchmarks.overhead`` runs it once per method, since peaks of a process cannot be reset.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.methods import METHODS
from benchmarks.settings import WORKLOADS, Setting, add_flags, setting
from benchmarks.steps import enter
from experiments.provenance import ROOT

STATUS = Path("/proc/self/status")


def in_fresh_process(setting: Setting, method: str) -> dict[str, float]:
    """``measure`` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", *setting.flags(), "--method", method]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The memory of {method} could not be measured:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(setting: Setting, method: str) -> dict[str, float]:
    """Bytes kept by the method, at the allocator's peak, and of the process."""
    brief = replace(setting, warmup=2, settle=1, lead=1)  # more steps allocate nothing new
    kept = enter(brief, method).contender.kept()
    rss = resident()
    if setting.device == "cuda":
        return {"kept": kept, "peak": torch.cuda.max_memory_allocated(), "rss": rss}
    gc.collect()
    return {"kept": kept, "peak": peak(lambda: enter(brief, method)), "rss": rss}


def resident() -> int:
    """Peak resident memory in bytes; on Linux, ``ru_maxrss`` would include the parent's peak."""
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak(act: Callable[[], Any]) -> int:
    """Peak of the bytes that torch allocated on the CPU within the profile."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        act()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held: list[int] = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(held))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, default="mlp")
    parser.add_argument("--method", choices=METHODS, default="plain")
    add_flags(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(json.dumps(measure(setting(args.workload, args), args.method)))


if __name__ == "__main__":
    main()
