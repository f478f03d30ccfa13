"""``python -m experiments.published``: the published rule and the rules of this package, under SGD and Adam."""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from experiments import console as show
from experiments.continual.batches import StreamBatches
from experiments.continual.data import load
from experiments.continual.evaluation import accuracy, evaluating
from experiments.continual.metrics import estimate
from experiments.continual.model import MLP
from experiments.continual.streams import Stream, make
from experiments.filing import origin, source
from experiments.options import add_table
from experiments.pages import grid, rewrite
from sal_lightning import CommunicationLayer
from sal_lightning.rules.tensor import TensorRule
from sal_lightning.settings import Protection

Rule = Literal["plain", "published", "here"]
RULES: tuple[Rule, ...] = get_args(Rule)
GRAINS: dict[Rule, Protection] = {"published": "tensor", "here": "subspace"}
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "SGD 0.1": lambda weights: SGD(weights, lr=0.1),
    "Adam 0.001": lambda weights: Adam(weights, lr=1e-3),
}
WIDTH, BATCH = 100, 32
WAY = 0.99  # share of the total distance moved by the weights
AROUND = 20  # steps before and after a change of task that are compared
HEADINGS = (
    *("optimizer", "rule", "just learned", "average", "worst task", "gradient held back"),
    *("step, of plain's", "99 % of its way by", "let through, before a change", "after"),
)
NOTE = f"""\
Written by `python -m experiments.published --table`, not by hand.

The digits of scikit-learn as five tasks, odd or even of two classes each, one after another; two hidden layers of
{WIDTH}. *Just learned*: mean accuracy on a task when it ends; *average* and *worst task*: at the end of all. *Gradient
held back*: the norm of what was taken from the gradient, of the whole gradient's. *Step*: mean length of a step of the
weights, of the plain run's. *99 % of its way by*: the step by which the weights had gone so much of all the way that
they ever went, for the seeds. *Let through*: the mean over tensors of `1 − s` where s > τ (1 where it is not), in the
{AROUND} steps before a change of task and in those after it. Mean ± standard error over seeds.
"""


class Found(NamedTuple):
    """Measurements of one run; NaN where they do not apply to a rule."""

    learned: float
    average: float
    worst: float
    held: float
    step: float  # mean length
    by: float  # the step that completed WAY
    before: float
    after: float


class Watched:
    """Trains one network through a stream, and measures each step."""

    def __init__(self, stream: Stream, optimizer: str, rule: Rule, seed: int) -> None:
        torch.manual_seed(seed)
        self.stream = stream
        self.net = MLP(stream.inputs, stream.outputs, WIDTH)
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.comm: CommunicationLayer | None = None
        if rule in GRAINS:
            self.comm = CommunicationLayer(self.net, self.optimizer, protection=GRAINS[rule])
            self.comm.measure = True
        self.lengths: list[float] = []  # of the steps
        self.held = torch.zeros(2)  # sums of squares: held back, whole
        self.passed: list[float] = []  # let through by the published rule, in the mean over tensors

    def run(self, steps: int, seed: int) -> Found:
        """Train on all tasks."""
        batches = StreamBatches(self.stream, steps, BATCH, seed)
        R = []
        for i in range(len(batches)):
            batch = batches[i]
            loss = F.cross_entropy(self.net(batch.x)[:, batch.classes], batch.y - batch.classes.start)
            self.step(loss)
            if (i + 1) % steps == 0:
                with evaluating(self.net):
                    R.append([accuracy(self.net, task) for task in self.stream.tasks])
        return self.found(R, steps)

    def step(self, loss: Tensor) -> None:
        """Take one step, and measure it."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        if self.comm is not None:
            self.comm.analyze()
            self.comm.protect()
            self.held += self.comm.measured["suppressed"]
            self.passed += [let_through(rule) for rule in self.comm.rules if isinstance(rule, TensorRule)]
        before = [p.detach().clone() for p in self.net.parameters()]
        self.optimizer.step()
        moved = [p.detach() - w for p, w in zip(self.net.parameters(), before, strict=True)]
        self.lengths.append(float(torch.stack([m.square().sum() for m in moved]).sum().sqrt()))

    def found(self, R: Sequence[Sequence[float]], steps: int) -> Found:
        """The measurements of the run."""
        changes = range(steps, len(self.passed), steps)
        before = [x for c in changes for x in self.passed[max(c - AROUND, 0) : c]]
        after = [x for c in changes for x in self.passed[c : c + AROUND]]
        return Found(
            learned=mean([row[i] for i, row in enumerate(R)]),
            average=mean(R[-1]),
            worst=min(R[-1]),
            held=float((self.held[0] / self.held[1]).sqrt()),
            step=mean(self.lengths),
            by=float(1 + int((torch.tensor(self.lengths).cumsum(0) < WAY * sum(self.lengths)).sum())),
            before=mean(before),
            after=mean(after),
        )


def let_through(rule: TensorRule) -> float:
    """The share of the gradient that is not masked, as a mean over tensors."""
    return float(torch.where(rule.s > rule.tau, 1 - rule.s, 1).mean())


def mean(values: Sequence[float]) -> float:
    """The mean; NaN for an empty sequence.

    >>> mean([1.0, 2.0]), mean([])
    (1.5, nan)
    """
    return math.fsum(values) / len(values) if values else math.nan


def cells(optimizer: str, rule: Rule, found: Sequence[Found], plain: Sequence[Found]) -> list[str]:
    """A row of the table; cells without a value are empty."""
    relative = [f._replace(step=f.step / p.step) for f, p in zip(found, plain, strict=True)]
    columns = {name: [getattr(f, name) for f in relative] for name in Found._fields}
    shown = {name: "" if any(map(math.isnan, values)) else str(estimate(values)) for name, values in columns.items()}
    shown["by"] = f"{min(columns['by']):.0f}..{max(columns['by']):.0f}"
    return [optimizer, rule, *shown.values()]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.published", description=__doc__)
    made.add_argument("--steps", type=int, default=60, help="training steps per task (default: %(default)s)")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_table(made, "fill this page's published block", "docs/concepts/published.md")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything, show the table and save it."""
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    console, rows = Console(), []
    with show.bar(console) as progress:
        bar = progress.add_task("published", total=len(OPTIMIZERS) * len(RULES) * len(args.seeds))
        for optimizer in OPTIMIZERS:
            runs: dict[Rule, list[Found]] = {rule: [] for rule in RULES}
            for rule in RULES:
                for seed in args.seeds:
                    stream = make("split-domain", load("digits"), seed)
                    runs[rule].append(Watched(stream, optimizer, rule, seed).run(args.steps, seed))
                    progress.advance(bar)
            rows += [cells(optimizer, rule, runs[rule], runs["plain"]) for rule in RULES]
    console.print(show.table("the published rule", HEADINGS, rows))
    if args.table:
        seeds = " ".join(map(str, args.seeds))
        command = f"python -m experiments.published --steps {args.steps} --seeds {seeds}"
        record = origin(command, args.seeds[0], "cpu")
        rewrite(args.table, "published", "\n".join([NOTE, grid(HEADINGS, rows), source(record)]))


if __name__ == "__main__":
    main()
