"""``python -m experiments.language``: methods, strengths and seeds on a language model, one JSON file per run."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments import console as show
from experiments.filing import require
from experiments.language.curves import BASELINE, read_all, save
from experiments.language.figure import draw
from experiments.language.methods import METHODS
from experiments.language.protocol import run
from experiments.language.results import cells, domains, headings, markdown, matched
from experiments.language.settings import FULL, LR, QUICK, Scale, Settings
from experiments.language.stages import Domains
from experiments.language.text import library, name_of, shakespeare
from experiments.options import add_reruns, add_table
from experiments.pages import rewrite

SHOWN = 5  # columns of the table that fit a terminal
QUICK_METHODS, QUICK_STRENGTHS = ("plain", "l2", "sal", "sal-remember"), 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.language", description=__doc__)
    made.add_argument("--methods", choices=METHODS, nargs="+", help="(default: all; quick: a few)")
    made.add_argument("--strengths", type=float, nargs="+", help="(default: those of each method)")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--lr", type=float, default=LR, help="of the later stages, except plain (default: %(default)s)")
    made.add_argument("--steps", type=int, nargs=3, help="of the three stages (default: 1500 400 200)")
    made.add_argument(
        "--data", type=Path, help="a folder with tinyshakespeare.txt, or another text for the first domain"
    )
    made.add_argument("--quick", action="store_true", help="a tiny network, in about two minutes")
    made.add_argument("--out", type=Path, help="(default: results/language, quick: out/language)")
    made.add_argument("--cache", type=Path, default=Path("out/language/cache"), help="of first stages")
    add_reruns(made)
    add_table(made, "fill this size's block of the page, with its figure")
    made.add_argument("--accelerator", default="cpu", help="Lightning's accelerator (default: %(default)s)")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    return made


def sizes(args: argparse.Namespace) -> Scale:
    """Sizes of the network and the stages."""
    scale = QUICK if args.quick else FULL
    return scale._replace(steps=tuple(args.steps)) if args.steps else scale


def wanted(args: argparse.Namespace, text: str) -> Iterator[Settings]:
    """The requested runs: all methods and strengths for one seed, then the next."""
    scale = sizes(args)
    for seed in args.seeds:
        for method in args.methods or (QUICK_METHODS if args.quick else METHODS):
            own = METHODS[method].strengths
            for strength in args.strengths or (own[:QUICK_STRENGTHS] if args.quick else own):
                yield Settings(method, strength, seed, strength if method == BASELINE else args.lr, scale, text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, then show all results."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console = Console()
    out = args.out or Path("out/language" if args.quick else "results/language")
    name = name_of(args.data)
    runs = list(wanted(args, name))
    missing = [s for s in runs if args.force or not (out / f"{s.name}.json").is_file()]
    todo = [] if args.from_records else missing
    texts = Domains(shakespeare(args.data), library()) if todo else None
    each = sum(sizes(args).steps)
    with show.bar(console) as progress:
        bar = progress.add_task("", total=len(todo) * each)
        for number, settings in enumerate(todo, 1):
            progress.update(bar, description=f"{settings.method} {settings.strength:g} seed {settings.seed}")
            ticker = show.Ticker(progress, bar)
            assert texts is not None
            save(run(settings, texts, args.cache, accelerator=args.accelerator, callbacks=[ticker]), out)
            progress.update(bar, completed=number * each)  # the first stage may be cached
    records = require(read_all(out, sizes(args), name), out)
    shown = [row[:SHOWN] for row in cells(records)]
    console.print(show.table("loss in nats a byte", headings(*domains(records))[:SHOWN], shown))
    console.print(matched(records))
    console.print(f"{len(todo)} run, {len(runs) - len(todo)} there already, in {out}")
    if args.table:
        block = "language-small" if sizes(args).small else "language"
        picture = args.table.with_name(f"{block}.png")
        draw(records, picture)
        rewrite(args.table, block, markdown(records, picture.name))


if __name__ == "__main__":
    main()
