"""``python -m experiments.selection``: selection of one prediction under dropout, by resonance and other methods."""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console

from experiments import console as show
from experiments.continual.data import load
from experiments.continual.metrics import estimate
from experiments.continual.protocol import data_name
from experiments.filing import Record, origin, read, require, save, source
from experiments.options import add_data, add_results
from experiments.pages import grid, rewrite
from experiments.selection.protocol import DROPOUT, T, answers, measured, noisy, trained, ways

HEADINGS = ("noise", "way", "accuracy", "area under risk-coverage")
NOTE = f"""\
Written by `python -m experiments.selection --from-records --table`, not by hand.

A network with dropout {DROPOUT:g}, trained on clean pictures, answers each test picture with Gaussian noise of this
standard deviation {T} times under dropout. *single*: the first answer. *max-softmax*: the network without dropout.
*mean*: the mean of the probabilities. *vote*: the class most often named, as sure as its share. *emergent*:
`emergence_select` on the square roots of the probabilities, as sure as its share; *resonance*: as sure as it is like
all the others on average. Area under the risk-coverage curve: less is better. Mean ± standard error over seeds.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.selection", description=__doc__)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    made.add_argument("--noise", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    made.add_argument("--steps", type=int, default=1500, help="of training (default: %(default)s)")
    add_data(made)
    add_results(made, "results/selection", "selection block", "docs/field.md")
    return made


def run(seed: int, noise: Sequence[float], steps: int, data: str) -> Record:
    """Train once, and predict under each level of noise."""
    arrays = load(data)
    net = trained(arrays, steps, seed)
    levels = []
    for size in noise:
        alone, p = answers(net, noisy(arrays.test_x, size, seed))
        found = {name: measured(answer, arrays.test_y) for name, answer in ways(alone, p).items()}
        levels.append({"noise": size, "ways": found})
    asked = f"--seeds {seed} --noise {' '.join(f'{size:g}' for size in noise)} --steps {steps}"
    command = f"python -m experiments.selection {asked} --data {data_name(data)}"
    return {"data": data_name(data), "steps": steps, "levels": levels} | origin(command, seed, "cpu")


def cells(records: Sequence[Record]) -> list[list[str]]:
    """One row per level of noise and method."""
    rows = []
    for i, level in enumerate(records[0]["levels"]):
        for way in level["ways"]:
            found = [r["levels"][i]["ways"][way] for r in records]
            numbers = [str(estimate([f[key] for f in found])) for key in ("accuracy", "risk")]
            rows.append([f"{level['noise']:g}", way, *numbers])
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, then show all requested results."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console, files = Console(), [args.out / f"{data_name(args.data)}-seed{seed}.json" for seed in args.seeds]
    with show.bar(console) as progress:
        for seed, file in progress.track(list(zip(args.seeds, files, strict=True)), description="seeds"):
            if args.force or not (args.from_records or file.is_file()):
                save(run(seed, args.noise, args.steps, args.data), file)
    records = require([read(file) for file in files if file.is_file()], args.out)
    console.print(show.table("one answer of many", HEADINGS, cells(records)))
    if args.table:
        page = "\n".join([NOTE, grid(HEADINGS, cells(records)), source(records[0])])
        rewrite(args.table, "selection", page)


if __name__ == "__main__":
    main()
