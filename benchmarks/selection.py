"""Run time of selecting one of many candidates: ``python -m benchmarks.selection``.

Candidates are spread around a number of random directions; the last row is the worst case without similar candidates.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import publish, spread
from experiments.filing import Record, origin, source
from experiments.pages import grid
from sal_lightning import emergence_select

LINEAGES = (1, 10, 100, 1000, 0)  # 0: every candidate has a direction of its own
NOISE = 0.3  # norm of the noise added to the direction of a lineage
HEADINGS = ("asked for", "found", "CPU seconds, median", "least..most")


def candidates(n: int, d: int, lineages: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rest: Tensor = torch.randn(n, d, generator=generator) / d**0.5
    if not lineages:
        return rest
    centres = torch.nn.functional.normalize(torch.randn(lineages, d, generator=generator), dim=1)
    x: Tensor = centres[torch.randint(lineages, (n,), generator=generator)] + NOISE * rest
    return x


def timed(x: Tensor, rounds: int) -> tuple[int, list[float]]:
    """The number of lineages, and the CPU seconds of each round after a warm-up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.process_time()
        found = emergence_select(x)
        seconds.append(time.process_time() - start)
    return len(torch.unique(found.lineages)), seconds[1:]


def markdown(record: Record) -> str:
    note = (
        f"`emergence_select` on {record['n']} candidates of {record['d']} dimensions, one thread: what it takes on a "
        "machine that does nothing else.\n"
    )
    rows = []
    for r in record["rows"]:
        s = spread(r["seconds"])
        name = str(r["lineages"] or "no two alike")
        rows.append([name, str(r["found"]), f"{s.median:.2f}", f"{s.least:.2f}..{s.most:.2f}"])
    return "\n".join([note, grid(HEADINGS, rows), source(record)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/selection/cost.json"))
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="rewrite its section on the cost of selection")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for lineages in LINEAGES:
        found, seconds = timed(candidates(args.candidates, args.dimensions, lineages, 0), args.rounds)
        rows.append({"lineages": lineages, "found": found, "seconds": seconds})
    sizes = f"--candidates {args.candidates} --dimensions {args.dimensions} --rounds {args.rounds}"
    record: Record = {"n": args.candidates, "d": args.dimensions, "rows": rows}
    record |= origin(f"python -m benchmarks.selection {sizes}", 0, "cpu")
    publish(record, args.out, markdown(record), args.table, "select")


if __name__ == "__main__":
    main()
