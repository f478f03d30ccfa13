"""``python -m experiments.continual``: methods and seeds on one stream, one JSON file per run."""

import argparse
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console

from experiments import console as show
from experiments.continual import ablation
from experiments.continual.methods import METHODS, known, varied
from experiments.continual.overview import overview
from experiments.continual.picture import draw
from experiments.continual.protocol import PUBLISHED, data_name, run
from experiments.continual.results import (
    SHORT,
    Run,
    cells,
    headings,
    markdown,
    read_all,
    save,
    title,
)
from experiments.continual.streams import STREAMS, count
from experiments.filing import read
from experiments.options import add_data, add_results, add_table
from experiments.pages import rewrite


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.continual", description=__doc__)
    made.add_argument("--stream", choices=STREAMS, default="split-domain")
    made.add_argument(
        "--methods",
        type=known,
        nargs="+",
        default=["plain", "sal"],
        help=f"of {', '.join(METHODS)}; options and constants may follow: sal:strength=8,rules.subspace.MASK=16",
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--steps", type=int, default=500, help="training steps per task (default: %(default)s)")
    add_data(made)
    made.add_argument("--lr", type=float, help="Adam's learning rate (default: the published one of the stream)")
    made.add_argument(
        "--quick", action="store_true", help="all methods on small images, 20 steps per task, in a minute"
    )
    add_results(made, "results/continual", "streams block")
    add_table(made, "fill this page's results block", "README.md", name="--overview")
    add_table(made, "fill this page's ablation block with variants", name="--ablation")
    add_table(made, "draw the averages of the split streams", "docs/streams.svg", name="--picture")
    made.add_argument("--accelerator", default="cpu", help="Lightning's accelerator (default: %(default)s)")
    return made


def wanted(args: argparse.Namespace) -> Iterator[Run]:
    """The requested runs: all methods for one seed, then the next."""
    lr = PUBLISHED[args.stream].lr if args.lr is None else args.lr
    for seed in args.seeds:
        for method in args.methods:
            yield Run(args.stream, method, data_name(args.data), seed, args.steps, lr)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, then show all requested results."""
    args = parser().parse_args(argv)
    if args.quick:
        args.data, args.steps, args.methods = "digits", 20, list(METHODS)
    torch.set_num_threads(args.threads)
    console = Console()
    runs = list(wanted(args))
    missing = [r for r in runs if args.force or not r.file(args.out).is_file()]
    todo = [] if args.from_records else missing
    for r in todo:
        with varied(r.method, args.stream):
            pass  # invalid methods are reported before the first run
    with show.bar(console) as progress:
        bar = progress.add_task(args.stream, total=len(todo) * count(args.stream) * args.steps)
        for r in todo:
            progress.update(bar, description=f"{r.stream} {r.method} seed {r.seed}")
            result = run(
                args.stream,
                r.method,
                r.seed,
                r.steps,
                data=args.data,
                lr=args.lr,
                accelerator=args.accelerator,
                callbacks=[show.Ticker(progress, bar)],
            )
            save(result, args.out)
    if records := [read(file) for r in runs if (file := r.file(args.out)).is_file()]:
        console.print(show.table(title(records[0]), headings(SHORT), cells(records, SHORT)))
    console.print(f"{len(todo)} run, {len(records) - len(todo)} there already, in {args.out}")
    if args.table:
        rewrite(args.table, "streams", markdown(read_all(args.out)))
    if args.overview:
        rewrite(args.overview, "results", overview(read_all(args.out)))
    if args.ablation:
        rewrite(args.ablation, "ablation", ablation.markdown(read_all(args.out)))
    if args.picture:
        draw(read_all(args.out), args.picture)


if __name__ == "__main__":
    main()
