"""``python -m experiments.anatomy``: locate forgetting in the weights by undoing parts of their movement."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from statistics import fmean
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from experiments import console as show
from experiments.continual.evaluation import accuracy, evaluating
from experiments.continual.metrics import estimate
from experiments.continual.model import MLP
from experiments.continual.protocol import data_name, run
from experiments.continual.streams import StreamName, Task
from experiments.filing import Record, origin, read, require, save, source
from experiments.networks import rewinding
from experiments.options import add_data, add_results
from experiments.pages import grid, rewrite
from sal_lightning import SALCallback
from sal_lightning.rules.subspace import SubspaceRule

STREAMS: tuple[StreamName, ...] = ("split-domain", "split-class")
STEPS = 2000
NOTE = """\
## Where forgetting sits

Written by `python -m experiments.anatomy --from-records --table`, not by hand. After the last task a part of what the
weights have moved is undone. *Earlier*: since a task was just learned, and the accuracy on that task, mean over all
tasks but the last; *last*: since the last task began, and the accuracy on that. *Held*: along the directions that SAL
holds in that layer at the end; *elsewhere*: along all others."""

Weights = dict[str, Tensor]  # of each layer (out, in + 1), the bias as a last column


def undone(now: Tensor, then: Tensor, U: Tensor, held: bool) -> Tensor:
    """Weights (out, d) without their movement since ``then`` along directions U (d, k), or orthogonal to them.

    >>> undone(torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [0.0]]), held=True)
    tensor([[1., 5.]])
    """
    moved = now - then
    along = moved @ U @ U.mT
    return now - (along if held else moved - along)


def variants(now: Weights, then: Weights, directions: Weights) -> Iterator[tuple[str, Weights]]:
    """Names of the undone parts, and the resulting weights."""
    yield "nothing", now
    for name, U in directions.items():
        yield name, now | {name: then[name]}
        yield f"{name}, held", now | {name: undone(now[name], then[name], U, held=True)}
        yield f"{name}, elsewhere", now | {name: undone(now[name], then[name], U, held=False)}
        yield f"all but {name}", then | {name: now[name]}
    yield "all", then


def weights(model: MLP) -> Weights:
    """A copy of the model's weights."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {name: torch.cat([m.weight, m.bias[:, None]], 1).detach().clone() for name, m in layers.items()}


def put(model: MLP, W: Weights) -> None:
    """Set the model's weights."""
    for name, w in W.items():
        model.get_submodule(name).load_state_dict({"weight": w[:, :-1], "bias": w[:, -1]})


class Ends(Callback):
    """Keeps the weights at the end of each task, the tasks and the model."""

    model: MLP
    tasks: Sequence[Task]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MLP)
        self.model, self.tasks = pl_module, trainer.datamodule.stream.tasks  # type: ignore[attr-defined]
        self.W: list[Weights] = []

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.datamodule.steps == 0:  # type: ignore[attr-defined]
            self.W.append(weights(self.model))


def dissect(stream: StreamName, seed: int, steps: int, data: str) -> Record:
    """Train with SAL, then undo parts: the accuracy on each task for each undone part."""
    sal, ends = SALCallback(), Ends()
    run(stream, "plain", seed, steps, data=data, every=steps, callbacks=[sal, ends])
    rules = [rule for layer in sal.layers for rule in layer.rules if isinstance(rule, SubspaceRule)]
    directions = {r.layer.name: torch.zeros(r.d, 0) if r.memory is None else r.memory.U[0] for r in rules}
    *earlier, now = ends.W
    found: dict[str, list[float]] = {}
    with evaluating(ends.model):
        for task, then in zip(ends.tasks, [*earlier, earlier[-1]], strict=True):
            for name, W in variants(now, then, directions):
                put(ends.model, W)
                found.setdefault(name, []).append(accuracy(ends.model, task))
    command = (
        f"python -m experiments.anatomy --streams {stream} --seeds {seed} --steps {steps} --data {data_name(data)}"
    )
    about = {"stream": stream, "steps": steps, "data": data_name(data), "accuracy": found}
    return about | origin(command, seed, "cpu")


def cells(records: Sequence[Record]) -> list[list[str]]:
    """A row for each undone part, two columns per stream: means over tasks, then over seeds."""
    rows = []
    for part in records[0]["accuracy"]:
        row = [part]
        for stream in streams(records):
            found = [r["accuracy"][part] for r in records if r["stream"] == stream]
            row += [str(estimate([fmean(f[:-1]) for f in found])), str(estimate([f[-1] for f in found]))]
        rows.append(row)
    return rows


def headings(records: Sequence[Record]) -> list[str]:
    """Headings of ``cells``."""
    return ["undone", *(f"{stream}, {which}" for stream in streams(records) for which in ("earlier", "last"))]


def streams(records: Sequence[Record]) -> list[str]:
    """The streams that have results."""
    return list(dict.fromkeys(r["stream"] for r in records))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.anatomy", description=__doc__)
    which = made.add_mutually_exclusive_group()
    which.add_argument("--streams", choices=STREAMS, nargs="+", default=list(STREAMS), help="of the MLP")
    about = f"rewind parts of other networks instead, of all without a value, on {rewinding.STREAM}"
    which.add_argument("--networks", choices=rewinding.NAMES, nargs="*", help=about)
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    steps = f"training steps per task (default: {STEPS}, with --networks {rewinding.STEPS})"
    made.add_argument("--steps", type=int, help=steps)
    add_data(made)
    add_results(made, "results/anatomy", "anatomy block, with --networks its anatomy-networks block")
    return made


def results(args: argparse.Namespace, console: Console) -> Iterator[Record]:
    """All requested records; those without a file are computed first, or left out with ``--from-records``."""
    if args.networks is not None:
        make: Callable[..., Record] = rewinding.dissect
        steps = args.steps or rewinding.STEPS
        names = {n: f"{n}-{rewinding.STREAM}" for n in args.networks or rewinding.NAMES}
    else:
        make, steps, names = dissect, args.steps or STEPS, {stream: stream for stream in args.streams}
    for (which, name), seed in product(names.items(), args.seeds):
        file = args.out / f"{name}-{data_name(args.data)}-steps{steps}-seed{seed}.json"
        if args.force or not (args.from_records or file.is_file()):
            console.print(f"{which}, seed {seed}")
            save(make(which, seed, steps, args.data), file)
        if file.is_file():
            yield read(file)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, then show all requested results."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    console = Console()
    records = require(list(results(args, console)), args.out)
    if args.networks is not None:
        title, block, note = "accuracy when a part is set back", "anatomy-networks", rewinding.NOTE
        shown, rows = list(rewinding.HEADINGS), rewinding.cells(records)
    else:
        title, block, note = "accuracy on earlier tasks and the last", "anatomy", NOTE
        shown, rows = headings(records), cells(records)
    console.print(show.table(title, shown, rows))
    if args.table:
        rewrite(args.table, block, "\n".join([f"{note}\n", grid(shown, rows), *map(source, records)]))


if __name__ == "__main__":
    main()
