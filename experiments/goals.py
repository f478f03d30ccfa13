"""``python -m experiments.goals``: goals for SAL, the measured values, and the differences."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from experiments import console as show
from experiments.continual import results
from experiments.continual.metrics import Estimate
from experiments.continual.protocol import PUBLISHED
from experiments.continual.reported import REPORTED
from experiments.filing import Record
from experiments.language import curves
from experiments.language.settings import FULL
from experiments.options import add_table
from experiments.pages import grid, rewrite

AVERAGE = {"split-task": 0.994, "split-domain": 0.94, "split-class": 0.88, "permuted": 0.965}
FUZZY = 0.03  # largest loss of average accuracy with gradual changes
LEARNED = 0.01  # largest loss of a just learned task to plain training
FORGOTTEN = 0.6  # relative to the forgetting of a lower learning rate at the same loss
STEPS = {"permuted": 5000}  # per task, as published; for others:
SPLIT_STEPS = 2000
NOTE = """\
Written by `python -m experiments.goals --table`, not by hand. The goals were set beforehand; the tables above hold each
figure with its command. SAL has its defaults and is told nothing. The language model is read between the strengths that
were run, and left out where those of SAL or of the other do not come. *Without replay*: the best that is reported of
EWC, SI and LwF, which are told where tasks end.
"""
HEADINGS = ("what", "without replay", "goal", "SAL", "seeds", "")


class Goal(NamedTuple):
    """A goal for one value: a lower bound, or with ``most`` an upper bound."""

    what: str
    goal: float
    reached: Estimate
    seeds: int
    published: float | None = None
    most: bool = False

    @property
    def missed(self) -> float:
        """Distance from the goal; not positive if it is met."""
        return (self.reached.mean - self.goal) * (1 if self.most else -1)

    def cells(self) -> tuple[str, ...]:
        """A row as text, under HEADINGS."""
        published = "" if self.published is None else f"{self.published:.3f}"
        verdict = f"missed by {self.missed:.4f}" if self.missed > 0 else "met"
        sign = "≤" if self.most else "≥"
        return self.what, published, f"{sign} {self.goal:.3f}", str(self.reached), str(self.seeds), verdict


def accuracies(records: Sequence[Record]) -> Iterator[Goal]:
    """Goals on the image streams, with the published number of steps and learning rate."""
    found: dict[tuple[str, str], results.Row] = {}
    for name, settings in PUBLISHED.items():
        wanted = (name, "mnist", STEPS.get(name, SPLIT_STEPS), settings.lr)
        there = [r for r in records if (r["scenario"], r["data"], r["steps"], r["lr"]) == wanted]
        found |= {(name, row.method): row for row in results.rows(there)}
    goals = dict(AVERAGE)
    if sharp := found.get(("split-domain", "sal")):
        goals["split-domain-fuzzy"] = sharp.estimates["average"].mean - FUZZY
    for stream, goal in goals.items():
        if row := found.get((stream, "sal")):
            known = REPORTED.get(stream, {})
            best = max((known[m] for m in ("ewc", "si", "lwf") if m in known), default=None)
            yield Goal(f"{stream}, average", goal, row.estimates["average"], row.seeds, best)
    for stream in goals:
        row, plain = found.get((stream, "sal")), found.get((stream, "plain"))
        if row and plain:
            goal = plain.estimates["just_learned"].mean - LEARNED
            yield Goal(f"{stream}, when just learned", goal, row.estimates["just_learned"], row.seeds)


def losses(records: Sequence[Record]) -> Iterator[Goal]:
    """Goals of the language model, at each loss on the second text reached by SAL and the lower learning rates."""
    found = curves.curves(records)
    if not {"sal", curves.BASELINE} <= found.keys():
        return
    baseline = found[curves.BASELINE]
    for x in curves.grid_of(baseline):
        read = {name: curves.reading(seeds, baseline, x) for name, seeds in found.items()}
        if sal := read.pop("sal"):
            what = f"language, forgotten at {x:g}"
            yield Goal(f"{what}, as a multiple of lower rates", FORGOTTEN, sal.ratio, len(found["sal"]), most=True)
            for name, other in others(read).items():
                yield Goal(f"{what}, against {name}", other, sal.forgotten, len(found["sal"]), most=True)


def others(read: Mapping[str, curves.Reading | None]) -> dict[str, float]:
    """Forgetting of the methods without SAL, except lower learning rates."""
    wanted = {name: r for name, r in read.items() if not name.startswith(("sal", curves.BASELINE))}
    return {name: r.forgotten.mean for name, r in wanted.items() if r}


def main(argv: Sequence[str] | None = None) -> None:
    """Show the goals, and write them into a block of a page."""
    made = argparse.ArgumentParser(prog="python -m experiments.goals", description=__doc__)
    made.add_argument("--continual", type=Path, default=Path("results/continual"), help="records of the streams")
    made.add_argument("--language", type=Path, default=Path("results/language"), help="records of the language model")
    add_table(made, "fill this page's goals block")
    args = made.parse_args(argv)
    texts = curves.read_all(args.language, FULL, "Shakespeare")
    rows = [goal.cells() for goal in (*accuracies(results.read_all(args.continual)), *losses(texts))]
    Console().print(show.table("goals", HEADINGS, rows))
    if args.table:
        rewrite(args.table, "goals", f"## What was aimed at\n\n{NOTE}\n{grid(HEADINGS, rows)}")


if __name__ == "__main__":
    main()
