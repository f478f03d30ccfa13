"""``python -m experiments.calibration``: judges on PyRIT's human labels, one record per judge and data set."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments import console as show
from experiments.calibration import pyrit, results
from experiments.calibration.protocol import JUDGES, Run, judged
from experiments.calibration.pyrit import KINDS, VALUES, Published, published
from experiments.filing import Record, origin, read, save
from experiments.options import add_reruns, add_table
from experiments.pages import rewrite
from experiments.provenance import installed
from safi_agent.calibration.card_page import write_card
from safi_agent.calibration.measurement import make_card

DATA: tuple[pyrit.Data, ...] = ("objective", "harm")
NUMBER = 395  # labels on which most of the published configurations were measured


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.calibration", description=__doc__)
    made.add_argument("--pyrit", type=Path, required=True, help="PyRIT's folder datasets/scorer_evals")
    made.add_argument("--model", type=Path, help="folder with SmolLM2-135M-Instruct, for the judge smollm2")
    made.add_argument("--judges", choices=JUDGES, nargs="+", default=JUDGES)
    made.add_argument("--data", choices=DATA, nargs="+", default=DATA)
    made.add_argument("--most", type=int, help="labels, drawn at random (default: all)")
    made.add_argument("--out", type=Path, default=Path("results/calibration"))
    made.add_argument("--work", type=Path, default=Path("out/calibration"), help="labels, judgements and cards")
    add_reruns(made)
    add_table(made, "fill this page's calibration blocks", "docs/howto/calibrate.md")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    return made


def command(run: Run) -> str:
    """The command of one run, with the names of folders only."""
    model = f" --model {run.model.name}" if run.judge == "smollm2" and run.model else ""
    most = f" --most {run.most}" if run.most else ""
    folders = f"--pyrit {run.pyrit.name}{model}"
    return f"python -m experiments.calibration {folders} --judges {run.judge} --data {run.data}{most}"


def measure(run: Run, console: Console) -> Record:
    """Judge, and compute the card."""
    with show.bar(console) as progress:
        bar = progress.add_task(run.name, total=len(run.labels().cases()))
        made = judged(run, lambda: progress.advance(bar))
    card = make_card(made.labels, run.labels_file.name, VALUES, made.judges.description, made.found)
    write_card(card, run.out / f"{run.name}.card.json")
    record = origin(command(run), card.seed, "cpu")
    for name in ("transformers", "langchain-core", "langchain-openai"):
        record["versions"][name] = installed(name)
    return {
        **record,
        "settings": {"judge": run.judge, "data": run.data, "most": run.most},
        "cpu": {"seconds": round(made.seconds, 2), "calls": made.calls},
        "card": card.model_dump(mode="json"),
    }


def alphas(folder: Path) -> dict[str, list[float]]:
    """Published ordinal alphas of single judges with people, by value."""
    found: dict[str, list[float]] = {}
    for file in sorted(folder.glob("harm/*_metrics.jsonl")):
        kind = {"sexual": "sexual_content"}.get(name := file.name.removesuffix("_metrics.jsonl"), name)
        for one in published(folder, f"harm/{file.name}"):
            found.setdefault(KINDS[kind], []).append(one.metrics["krippendorff_alpha_combined"])
    return found


def others(folder: Path, data: pyrit.Data) -> list[Published]:
    """The published configurations on all labels, the most accurate first."""
    if data != "objective":
        return []
    every = published(folder, "objective/objective_achieved_metrics.jsonl")
    same = [one for one in every if one.metrics["num_responses"] == NUMBER]
    return sorted(same, key=lambda one: -float(one.metrics["accuracy"]))


def wanted(args: argparse.Namespace) -> Iterator[Run]:
    """The requested runs."""
    for data in args.data:
        for judge in args.judges:
            yield Run(judge, data, args.pyrit, args.work, args.model, args.most)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, and write the tables of all results."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console = Console()
    for run in wanted(args):
        file = args.out / f"{run.name}.json"
        if args.force or not (args.from_records or file.is_file()):
            save(measure(run, console), file)
    for data in args.data:
        files = [args.out / f"{data}-{judge}.json" for judge in JUDGES]
        records = [read(file) for file in files if file.is_file()]
        text = results.markdown(data, records, others(args.pyrit, data), alphas(args.pyrit))
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        if args.table:
            rewrite(args.table, f"calibration {data}", text)


if __name__ == "__main__":
    main()
