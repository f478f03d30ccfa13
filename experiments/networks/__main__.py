"""``python -m experiments.networks``: networks of many kinds on changing streams; a JSON line per run, a table."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments import console as show
from experiments.filing import Record
from experiments.networks import page, results
from experiments.networks.jobs import carry_out
from experiments.networks.mobilenet import WeightsMissing, weights_file
from experiments.networks.networks import MOBILENET, NAMES
from experiments.networks.protocol import BASELINES, BATCH, METHODS, STEPS, Run, data_of, known, useful
from experiments.networks.streams import STREAMS
from experiments.options import add_data, add_results, add_table
from experiments.pages import rewrite


def method(text: str) -> str:
    """Parse a method name; argparse reports invalid ones."""
    try:
        return known(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.networks", description=__doc__)
    made.add_argument("--networks", choices=NAMES, nargs="+", default=NAMES)
    made.add_argument("--streams", choices=tuple(STREAMS), nargs="+", default=tuple(STREAMS))
    about = f"of {', '.join((*METHODS, *BASELINES))}; options may follow: told:pull=0,fisher=drawn, ewc:strength=1e4"
    made.add_argument("--methods", type=method, nargs="+", default=METHODS, help=about)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=STEPS, help="training steps per task (default: %(default)s)")
    made.add_argument("--batch", type=int, default=BATCH, help="images per step (default: %(default)s)")
    made.add_argument("--weights", type=Path, metavar="FOLDER", help=f"folder with ImageNet weights, for {MOBILENET}")
    made.add_argument("--jobs", type=int, default=1, help="number of parallel processes (default: %(default)s)")
    made.add_argument("--quick", action="store_true", help="small images, 20 steps per task and one seed")
    add_table(made, "fill this page's block of variants for the data set", name="--variants")
    made.add_argument("--block", help="name of the block (default: networks-variants-DATA)")
    add_data(made)
    add_results(made, "results/networks", "networks block")
    return made


def wanted(args: argparse.Namespace) -> Iterator[Run]:
    """The requested runs that are informative: all seeds, methods and streams of a network, then the next."""
    for network in args.networks:
        for stream in args.streams:
            for method in args.methods:
                for seed in args.seeds:
                    asked = Run(network, stream, method, seed, data_of(network, args.data), args.steps, args.batch)
                    if useful(asked, args.seeds[0]):
                        yield asked


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, then show all requested results."""
    args = parser().parse_args(argv)
    if args.quick:
        args.data, args.steps, args.seeds = "digits", 20, args.seeds[:1]
    torch.set_num_threads(args.threads)
    console, file = Console(), args.out / "runs.jsonl"
    runs = list(wanted(args))
    if MOBILENET in args.networks and not args.from_records:
        try:
            weights_file(args.weights)
        except WeightsMissing as missing:
            console.print(f"{MOBILENET} is left out. {missing}")
            runs = [asked for asked in runs if asked.network != MOBILENET]
    there = {results.key(record) for record in results.read(file)}
    todo = [] if args.from_records else [asked for asked in runs if args.force or asked not in there]
    failures: list[str] = []
    with show.bar(console) as progress:
        bar = progress.add_task("networks", total=len(todo))
        for result in carry_out(todo, args.weights, args.jobs, args.threads):
            if isinstance(result, str):
                failures.append(result)
                progress.console.print(result, markup=False)
            else:
                results.append(result, file)
            progress.advance(bar)
    asked = set(runs)
    records = [record for record in results.read(file) if results.key(record) in asked]
    report(records, console, args.table, args.variants, args.block)
    console.print(f"{len(todo) - len(failures)} run, {len(runs) - len(todo)} there already, in {file}")
    if failures:
        raise SystemExit(f"{len(failures)} failed.")


def report(
    records: Sequence[Record],
    console: Console,
    table: Path | None = None,
    variants: Path | None = None,
    block: str | None = None,
) -> None:
    """Show the tables, and write them into blocks of pages."""
    groups = results.grouped(records)
    for stream in STREAMS:
        if rows := list(page.rows(groups, stream)):
            console.print(show.table(stream, page.SHORT, map(page.short, rows)))
    headings, rows = page.variants(groups)
    if rows:
        console.print(show.table("variants, old / new", headings, rows))
    if table and records:
        rewrite(table, "networks", page.page(records))
    if variants and rows:
        rewrite(variants, block or f"networks-variants-{records[0]['data']}", page.variants_page(records))


if __name__ == "__main__":
    main()
