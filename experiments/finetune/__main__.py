"""``python -m experiments.finetune``: methods, strengths and seeds on a pretrained model, one JSON file per run."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from experiments import console as show
from experiments import filing
from experiments.finetune import results
from experiments.finetune.methods import METHODS
from experiments.finetune.protocol import run
from experiments.finetune.settings import Scale, Settings
from experiments.options import add_reruns, add_table
from experiments.pages import rewrite

STREAMS = ("german", "code", "german-code")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.finetune", description=__doc__)
    made.add_argument("--model", type=Path, required=True, help="folder with a model of transformers")
    made.add_argument("--texts", type=Path, required=True, help="folder with the new texts")
    made.add_argument("--streams", choices=STREAMS, nargs="+", default=STREAMS)
    made.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    made.add_argument("--strengths", type=float, nargs="+", help="(default: those of each method)")
    made.add_argument("--lr", type=float, help="(default: of each method; of plain its strength)")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    for name, default in asdict(Scale()).items():
        made.add_argument(f"--{name}", type=type(default), default=default)
    made.add_argument("--out", type=Path, default=Path("results/finetune"))
    made.add_argument("--cache", type=Path, default=Path("out/finetune"), help="of the model's own samples")
    add_reruns(made)
    add_table(made, "fill the streams' blocks of this page")
    made.add_argument("--accelerator", default="cpu", help="Lightning's accelerator (default: %(default)s)")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    return made


def sizes(args: argparse.Namespace) -> Scale:
    """Sizes of a batch, of the stages and of the texts."""
    return Scale(**{name: getattr(args, name) for name in asdict(Scale())})


def wanted(args: argparse.Namespace) -> Iterator[Settings]:
    """The requested runs: all methods and strengths for one seed and stream, then the next."""
    for seed in args.seeds:
        for stream in args.streams:
            for name in args.methods:
                for strength in args.strengths or METHODS[name].strengths:
                    lr = strength if name == "plain" else args.lr or METHODS[name].lr
                    yield Settings(stream, name, strength, lr, seed, args.model.name, sizes(args))


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console = Console()
    runs = list(wanted(args))
    missing = [s for s in runs if args.force or not (args.out / f"{s.name}.json").is_file()]
    todo = [] if args.from_records else missing
    with show.bar(console) as progress:
        bar = progress.add_task("", total=sum(len(s.texts) * s.scale.steps for s in todo))
        for s in todo:
            progress.update(bar, description=f"{s.stream} {s.method} {s.strength:g} seed {s.seed}")
            cache = args.cache / s.model
            ticker = show.Ticker(progress, bar)
            result = run(s, args.model, args.texts, cache, accelerator=args.accelerator, callbacks=[ticker])
            filing.save(result.record(), args.out / f"{s.name}.json")
    console.print(f"{len(todo)} run, {len(runs) - len(todo)} there already, in {args.out}")
    for stream in args.streams:
        records = results.read_all(args.out, sizes(args), args.model.name, stream)
        if records:
            console.print(stream, results.matched(records, stream.split("-")[-1]), sep="\n")
        if records and args.table:
            picture = args.table.with_name(f"finetune-{stream}.png")
            results.draw(records, picture)
            rewrite(args.table, f"finetune-{stream}", results.markdown(records, picture.name))


if __name__ == "__main__":
    main()
