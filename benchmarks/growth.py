"""How SAL's cost grows with width, rank and batch: ``python -m benchmarks.growth``.

The model is one square linear layer whose input requires a gradient too, as inside a network. It holds ``rank``
directions: projecting on k of them takes ``4·out·in·k`` operations. The gradient is masked along the 32 strongest in
each step, the update restored along all of them every 16 steps; forward and backward take ``6·batch·out·in``.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from rich.console import Console

from benchmarks.layer import Layer, Parts, inputs, mean
from benchmarks.report import spread
from experiments import console as show
from experiments.filing import Record, origin, read_all, save, source
from experiments.options import add_table
from experiments.pages import grid, rewrite
from sal_lightning.rules import subspace

CHEAP = 1.1  # largest ratio to a plain step that counts as cheap
HEADINGS = (
    *("width", "batch", "rank", "plain, ms", "listen", "analyze", "protect", "restore", "× plain", "least..most"),
    *("operations, 10⁹", "× predicted"),
)
OPERATIONS = f"4·({subspace.MASK} + rank/{subspace.SETTLE})"
NOTE = f"""Written by `python -m benchmarks.growth --from-records --table`, not by hand.

One square layer, after consolidation; means over the steps of a round, medians over rounds. *Listen* is what the
forward pass takes longer and *restore* what the optimizer's step does. *Operations*: `{OPERATIONS}` a step and
weight.
*Predicted*: by these alone, `1 + {OPERATIONS} / (6·batch)`. Bold: more than {CHEAP} × plain.
Sizes of the command that are not in the table were not run.
"""


class Cell(NamedTuple):
    """Width, batch and rank of one measurement."""

    width: int
    batch: int
    rank: int

    def operations(self) -> int:
        """Operations of mask and restore per step."""
        return int(4 * self.width**2 * (min(self.rank, subspace.MASK) + self.rank / subspace.SETTLE))

    def predicted(self) -> float:
        """Predicted ratio to a plain step, from the number of operations."""
        return 1 + self.operations() / (6 * self.batch * self.width**2)


def measure(cell: Cell, rounds: int, steps: int, device: str) -> Record:
    """Measure plain training and SAL in alternation."""
    layers = Layer(cell.width, device), Layer(cell.width, device, cell.rank)
    x = inputs(cell.batch, cell.width, device=device)
    for layer in layers:
        layer.settle()
        layer.train(x)
    taken = [[mean([layer.train(x) for _ in range(steps)]) for layer in layers] for _ in range(rounds)]
    plain, sal = (Parts(*map(median, zip(*parts, strict=True))) for parts in zip(*taken, strict=True))
    return cell._asdict() | {
        "plain_ms": 1e3 * (plain.passes + plain.step),
        "listen_ms": 1e3 * (sal.passes - plain.passes),
        "analyze_ms": 1e3 * sal.analyze,
        "protect_ms": 1e3 * sal.protect,
        "restore_ms": 1e3 * (sal.step - plain.step),
        "ratio": spread([sum(b) / (a.passes + a.step) for a, b in taken])._asdict(),
        "operations": cell.operations(),
        "predicted": cell.predicted(),
    }


def cells(row: Record) -> list[str]:
    """A row as text, in the order of ``HEADINGS``."""
    ratio = row["ratio"]
    shown = f"{ratio['median']:.2f}" if ratio["median"] <= CHEAP else f"**{ratio['median']:.2f}**"
    times = [f"{row[f'{part}_ms']:.2f}" for part in ("plain", "listen", "analyze", "protect", "restore")]
    sizes = [str(row[size]) for size in Cell._fields]
    between = f"{ratio['least']:.2f}..{ratio['most']:.2f}"
    return [*sizes, *times, shown, between, f"{row['operations'] / 1e9:.3g}", f"{row['predicted']:.2f}"]


def cheap(rows: Sequence[Record]) -> str:
    """For each rank and batch, the widths with a ratio of at most CHEAP."""
    batches, ranks = (list(dict.fromkeys(row[size] for row in rows)) for size in ("batch", "rank"))

    def widths(rank: int, batch: int) -> str:
        here = [r for r in rows if (r["rank"], r["batch"]) == (rank, batch) and r["ratio"]["median"] <= CHEAP]
        return ", ".join(str(r["width"]) for r in here) or "none"

    lines = [[str(rank), *(widths(rank, batch) for batch in batches)] for rank in ranks]
    return f"Widths at most {CHEAP} × plain:\n\n" + grid(["rank", *(f"batch {batch}" for batch in batches)], lines)


def markdown(records: Iterable[Record]) -> str:
    """Two tables per record: cheap widths, then all measurements."""
    parts = [
        f"### {r['title']}\n\n{cheap(r['rows'])}\n{grid(HEADINGS, map(cells, r['rows']))}\n{source(r)}" for r in records
    ]
    return "\n".join(["## How the cost grows\n", NOTE, *parts])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    made.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    made.add_argument("--batches", type=int, nargs="+", default=[128, 1024, 4096])
    made.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 128, 256])
    made.add_argument("--rounds", type=int, default=3, help="rounds of plain training and SAL (default: %(default)s)")
    made.add_argument("--steps", type=int, default=16, help="steps per round (default: %(default)s)")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--out", type=Path, default=Path("results/growth"))
    made.add_argument("--from-records", action="store_true", help="measure nothing, write what has a record")
    add_table(made, "rewrite its growth section from all under --out")
    return made


def command(args: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    names = ("widths", "batches", "ranks", "rounds", "steps", "threads", "device")
    words = ([f"--{n}", *map(str, v if isinstance(v := getattr(args, n), list) else [v])] for n in names)
    return " ".join(["python -m benchmarks.growth", *(word for flag in words for word in flag)])


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console, title = Console(stderr=True), f"{args.device}, threads {args.threads}"
    record: Record = {"title": title, "rows": []} | origin(command(args), 0, args.device)
    sizes = [Cell(*size) for size in product(args.widths, args.batches, args.ranks) if not args.from_records]
    with show.bar(console) as progress:
        bar = progress.add_task("growth", total=len(sizes))
        for cell in sizes:
            progress.update(bar, description=f"width {cell.width} batch {cell.batch} rank {cell.rank}")
            record["rows"].append(measure(cell, args.rounds, args.steps, args.device))
            save(record, args.out / f"growth-{args.device}-threads{args.threads}.json")  # the run may be interrupted
            progress.advance(bar)
    print(markdown(read_all(args.out) if args.from_records else [record]))
    if args.table:
        rewrite(args.table, "growth", markdown(read_all(args.out)))


if __name__ == "__main__":
    main()
