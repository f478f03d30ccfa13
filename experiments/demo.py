"""``python -m experiments.demo``: plain training and SAL in comparison, on images that need no download."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments import console as show
from experiments.continual.protocol import Result
from experiments.continual.results import SHORT, cells, headings, save, title
from experiments.continual.streams import StreamName, count
from experiments.figure import draw
from experiments.watched import page, watch

METHODS = ("plain", "sal")
SCENARIOS: tuple[StreamName, ...] = ("split-domain", "split-class")
BUDGET = 70.0  # seconds of training; with the conversation the demo takes less than 90
LOOKS_PER_TASK = 15


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__)
    made.add_argument("--steps", type=int, default=300, help="training steps per task (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("out/demo"))
    made.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="also a language model's answers before, after plain training and SAL",
    )
    return made


def compare(scenario: StreamName, args: argparse.Namespace, console: Console) -> list[Result]:
    """Run every method once on the same stream, with one progress bar each."""
    results = []
    with show.bar(console) as progress:
        for method in METHODS:
            ticker = show.Ticker(
                progress, progress.add_task(f"{scenario} {method}", total=count(scenario) * args.steps)
            )
            every = max(1, args.steps // LOOKS_PER_TASK)
            folder = args.out / scenario
            options = {"seed": args.seed, "steps": args.steps, "data": "digits", "every": every}
            results.append(watch(scenario, method, folder, [ticker], **options))
    return results


def report(results: Sequence[Result], out: Path, console: Console) -> None:
    """Write a table, a figure, one JSON file per run, and a report page of SAL."""
    for result in results:
        save(result, out)
    records = [result.record() for result in results]
    console.print(show.table(title(records[0]), headings(SHORT), cells(records, SHORT)))
    draw(results, out / f"{results[0].scenario}.png")
    file = page(out / results[0].scenario, out / f"{results[0].scenario}.html")
    console.print(f"Report of SAL: {file.resolve()}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the scenarios in order, as long as the next one fits the time limit."""
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    console = Console()
    started = time.perf_counter()
    for done, scenario in enumerate(SCENARIOS):
        spent = time.perf_counter() - started
        if done and spent * (done + 1) / done > BUDGET:
            break
        report(compare(scenario, args, console), args.out, console)
    if args.model is not None:
        from experiments.sentences import compare as compare_answers

        compare_answers(args.model, console)
    console.print(f"Figures and results: {args.out.resolve()}")


if __name__ == "__main__":
    main()
