"""``python -m experiments.judge``: a local judge on PyRIT's human labels, one record per run."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments import console as show
from experiments.filing import read_all, save
from experiments.judge import results
from experiments.judge.data import FOLDS, Data
from experiments.judge.protocol import METHODS, TASKS, Run, cost, record
from experiments.pages import rewrite

DATA: tuple[Data, ...] = ("objective", "harm")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.judge", description=__doc__)
    made.add_argument("--pyrit", type=Path, help="PyRIT's folder datasets/scorer_evals")
    made.add_argument("--encoder", type=Path, help="folder with all-MiniLM-L6-v2")
    made.add_argument("--tasks", choices=TASKS, nargs="+", default=TASKS)
    made.add_argument("--data", choices=DATA, nargs="+", help="(default: of each task)")
    made.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS, help="of sequences")
    made.add_argument("--folds", type=int, choices=range(FOLDS), nargs="*", default=range(FOLDS))
    made.add_argument("--train-encoder", action="store_true", help="train the encoder too")
    made.add_argument("--most", type=int, help="training examples of each value (default: all)")
    made.add_argument("--cost", action="store_true", help="measure the time to judge an answer too")
    made.add_argument("--out", type=Path, default=Path("results/judge"))
    made.add_argument("--cache", type=Path, default=Path("out/judge"), help="of the encoder's vectors")
    made.add_argument("--force", action="store_true", help="rerun what already has a result")
    made.add_argument("--table", type=Path, metavar="FILE.md", help="fill this page's judge block from all records")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    return made


SETS: dict[str, tuple[Data, ...]] = {
    "agreement": ("objective", "harm"),
    "sequence": ("harm",),
    "policies": ("objective",),
}


def wanted(args: argparse.Namespace) -> Iterator[Run]:
    """The requested runs, fold by fold."""
    for fold in args.folds:
        for task in args.tasks:
            for data in args.data or SETS[task]:
                for method in ("joint",) if task == "agreement" else args.methods:
                    yield Run(task, data, method, fold, args.train_encoder, args.most)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, and write the tables of all results."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console = Console()
    todo = [run for run in wanted(args) if args.force or not (args.out / f"{run.name}.json").is_file()]
    if (todo or args.cost) and not (args.pyrit and args.encoder):
        raise SystemExit("experiments.judge: runs without a result need --pyrit and --encoder.")
    with show.bar(console) as progress:
        bar = progress.add_task("", total=len(todo))
        for run in todo:
            progress.update(bar, description=run.name)
            save(record(run, args.pyrit, args.encoder, args.cache), args.out / f"{run.name}.json")
            progress.advance(bar)
    if args.cost:
        save(cost(args.pyrit, args.encoder), args.out / "cost.json")
    records = read_all(args.out)
    picture = args.table.with_name("judge.png") if args.table else None
    drawn = picture is not None and results.draw(records, picture)
    text = results.markdown(records, picture.name if picture is not None and drawn else "")
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    if args.table:
        rewrite(args.table, "judge", text)


if __name__ == "__main__":
    main()
