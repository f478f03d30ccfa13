"""``python -m experiments.detection``: novelty as a change detector; a JSON file per source, a table, a figure."""

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from rich.console import Console

from experiments import console as show
from experiments.continual.data import load
from experiments.continual.protocol import data_name
from experiments.continual.streams import STREAMS, Stream, StreamName, make
from experiments.detection.protocol import Heard, listen, measures
from experiments.detection.results import HEADINGS, cells, page
from experiments.detection.sources import named
from experiments.filing import origin, read, require, save
from experiments.options import add_data, add_results
from experiments.pages import rewrite

SOURCES = ("split-domain", "permuted", "rotated", "text", "stationary", "text-stationary", "split-domain-fuzzy")
EACH = 20  # batches per point of the figure
STEPS = {"stationary": 10_500, "text-stationary": 10_500, "split-domain-fuzzy": 2000}  # for others: --steps


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.detection", description=__doc__)
    made.add_argument("--sources", choices=(*STREAMS, *SOURCES), nargs="+", default=SOURCES)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=300, help="batches per task, except for sources with a fixed number")
    add_data(made)
    add_results(made, "results/detection", "detection block, with its figure", "docs/field.md")
    return made


def run(name: str, args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Run all seeds of a source; long sources have one seed."""
    long = name in STEPS
    steps, seeds = (STEPS[name], args.seeds[:1]) if long else (args.steps, args.seeds)
    sources = [named(name, args.data, steps, seed) for seed in seeds]
    bar = progress.add_task(name, total=sum(s.length for s in sources))
    runs = [listen(s, lambda: progress.advance(bar)) for s in sources]
    command = f"python -m experiments.detection --sources {name} --seeds {' '.join(map(str, seeds))}"
    command += ("" if long else f" --steps {steps}") + f" --data {data_name(args.data)}"
    found = {"name": name, "data": data_name(args.data), "steps": steps, "seeds": seeds, **measures(runs)}
    if name == "rotated":
        found |= {"turns": [turn for seed in seeds for turn in turns(args.data, seed)]}
    if name.endswith("fuzzy"):
        found |= {"curve": curve(runs[0], make(cast(StreamName, name), load(args.data), seeds[0]), steps)}
    return found | origin(command, seeds[0], "cpu")


def turns(data: str, seed: int) -> list[float]:
    """Rotation of the images in degrees at each change of the rotated stream."""
    angles = [math.degrees(cast(Any, task.see).args[0]) for task in make("rotated", load(data), seed).tasks]
    return [round(abs(b - a), 1) for a, b in pairwise(angles)]


def curve(heard: Heard, stream: Stream, steps: int) -> dict[str, Any]:
    """Data of the figure: means over EACH batches, and each task's share of them."""
    shares = torch.stack([stream.shares(i, steps) for i in range(len(heard.excess))])
    return {
        "each": EACH,
        "excess": means(heard.excess),
        "shares": [means(row) for row in shares.T.tolist()],
        "events": heard.events,
    }


def means(values: Sequence[float]) -> list[float]:
    """Means of EACH values at a time without NaN, rounded to three digits.

    >>> means([0.0] * 10 + [1.0] * 10 + [float("nan")] * 19 + [0.25])
    [0.5, 0.25]
    """
    return [round(x, 3) for x in torch.tensor(values).unfold(0, EACH, EACH).nanmean(1).nan_to_num().tolist()]


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, then show all requested results."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console, files = Console(), {name: args.out / f"{name}.json" for name in args.sources}
    with show.bar(console) as progress:
        for name, file in files.items():
            if args.force or not (args.from_records or file.is_file()):
                save(run(name, args, progress), file)
    records = {name: read(file) for name, file in files.items() if file.is_file()}
    rows = [cells(record) for record in require(list(records.values()), args.out)]
    console.print(show.table("novelty as a detector of change", HEADINGS, rows))
    if args.table:
        rewrite(args.table, "detection", page(records, args.table.with_name("detection.png")))


if __name__ == "__main__":
    main()
