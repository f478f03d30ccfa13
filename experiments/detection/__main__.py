"""``python -m experiments.detection``: novelty as a detector of change, one JSON file a source, a table, a figure."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.report import origin, save, source
from experiments import console as show
from experiments.continual.data import NAMED, load
from experiments.continual.protocol import data_name
from experiments.continual.streams import STREAMS, make
from experiments.detection.figure import draw
from experiments.detection.pair import JUMP
from experiments.detection.protocol import Heard, false_alarms, listen, measures
from experiments.detection.sources import named
from experiments.pages import grid, rewrite

SOURCES = ("split-domain", "permuted", "rotated", "text", "stationary", "text-stationary", "split-domain-fuzzy")
STEPS = {"stationary": 10_500, "text-stationary": 10_500, "split-domain-fuzzy": 2000}  # of all others --steps
HEADINGS = ("source", "batches", "changes", "found", "AUROC", "median delay", "longest", "false alarms")
NOTE = """\
Written by `python -m experiments.detection --table`, not by hand.

*AUROC* of the novelty that consolidation waits for: the first batch after a change against all batches of a task.
*Delay*: batches of the new kind that were seen when the change was believed. *False alarms*: changes believed where
there was none. Each is what the communication layer itself did; the network is not trained, since its first layer
sees the inputs.
"""
FUZZY = """\
![Novelty along a stream whose tasks shade into each other]({figure})

Where tasks shade into each other nothing is believed, because the window moves along. Compared with an older copy of
itself (`experiments.detection.pair`) the window knows: drift beyond {jump:g} was seen {found} times in the
{batches} batches with {changes} gradual changes, and {false} times in {stationary} stationary batches, where it was at
most {most:.3f}. This is a proposal, and not what `SALCallback` does.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.detection", description=__doc__)
    made.add_argument("--sources", choices=(*STREAMS, *SOURCES), nargs="+", default=SOURCES)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=300, help="batches a task, where a source has no number of its own")
    made.add_argument("--data", default="mnist", help=f"{', '.join(NAMED)}, or a folder with the four MNIST files")
    made.add_argument("--out", type=Path, default=Path("results/detection"))
    made.add_argument("--force", action="store_true", help="run again what has a result already")
    made.add_argument("--table", type=Path, metavar="FILE.md", help="fill this page's detection block, draw beside it")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    return made


def run(name: str, args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """All seeds of a source; long ones have one."""
    long = name in STEPS
    steps, seeds = (STEPS[name], args.seeds[:1]) if long else (args.steps, args.seeds)
    sources = [named(name, args.data, steps, seed) for seed in seeds]
    bar = progress.add_task(name, total=sum(s.length for s in sources))
    runs = [listen(s, long, lambda: progress.advance(bar)) for s in sources]
    command = f"python -m experiments.detection --sources {name} --seeds {' '.join(map(str, seeds))}"
    command += ("" if long else f" --steps {steps}") + f" --data {data_name(args.data)}"
    found = {"name": name, "data": data_name(args.data), "steps": steps, "seeds": seeds, **measures(runs)}
    if runs[0].drift:
        found |= {"pair": beside(runs[0])}
    if name.endswith("fuzzy"):
        found |= {"curve": curve(runs[0], name, args.data, steps)}
    return found | origin(command, seeds[0], "cpu")


def beside(heard: Heard) -> dict[str, Any]:
    """What the older copy of the window would have said."""
    return {
        "events": heard.pair_events,
        "false_alarms": false_alarms(heard, heard.pair_events),
        "most": max(heard.drift),
    }


def curve(heard: Heard, name: str, data: str, steps: int) -> dict[str, Any]:
    """What the figure needs."""
    stream = make(name, load(data), 0)  # type: ignore[arg-type]
    shares = torch.stack([stream.shares(i, steps) for i in range(len(heard.excess))], 1)
    return {
        "excess": rounded(heard.excess),
        "drift": rounded(heard.drift),
        "shares": [rounded(row) for row in shares.tolist()],
        "events": heard.events,
        "pair_events": heard.pair_events,
    }


def rounded(values: list[float]) -> list[float]:
    """Three digits, 0 for what is not known.

    >>> rounded([0.12345, float("nan")])
    [0.123, 0.0]
    """
    return [0.0 if math.isnan(v) else round(v, 3) for v in values]


def cells(record: dict[str, Any]) -> list[str]:
    """One row."""
    auroc = "" if record["auroc"] is None else f"{record['auroc']:.4f}"
    late = ["" if record[key] is None else str(record[key]) for key in ("median_delay", "longest_delay")]
    counts = [str(record[key]) for key in ("batches", "changes", "found")]
    return [record["name"], *counts, auroc, *late, str(record["false_alarms"])]


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, then show all that was asked for."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console, files = Console(), {name: args.out / f"{name}.json" for name in args.sources}
    with show.bar(console) as progress:
        for name, file in files.items():
            if args.force or not file.is_file():
                save(run(name, args, progress), file)
    records = {name: json.loads(file.read_text()) for name, file in files.items()}
    rows = [cells(record) for record in records.values()]
    console.print(show.table("novelty as a detector of change", HEADINGS, rows))
    if args.table:
        rewrite(args.table, "detection", page(records, rows, args.table.with_name("detection.png")))


def page(records: dict[str, dict[str, Any]], rows: list[list[str]], picture: Path) -> str:
    """The table, and of a fuzzy stream its figure."""
    parts = [NOTE, grid(HEADINGS, rows)]
    if "split-domain-fuzzy" in records and "stationary" in records:
        fuzzy, still = records["split-domain-fuzzy"], records["stationary"]
        draw(fuzzy, picture)
        parts.append(
            FUZZY.format(
                figure=picture.name,
                jump=JUMP,
                found=len(fuzzy["pair"]["events"]),
                batches=fuzzy["batches"],
                changes=fuzzy["changes"],
                false=len(still["pair"]["events"]),
                stationary=still["batches"],
                most=still["pair"]["most"],
            )
        )
    return "\n".join([*parts, source(next(iter(records.values())))])


if __name__ == "__main__":
    main()
