"""``python -m experiments.readings``: values of the emergence field and the spectrum in real runs, per step.

A run records the steps with emergence, and the held spectrum at the end. ``frozen`` is the same run with
``strength=1e6``: everything is held, and the network cannot learn any more.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from rich.console import Console
from typing_extensions import override

from experiments import console as show
from experiments.continual.data import load
from experiments.continual.protocol import quiet
from experiments.continual.protocol import trainer as make_trainer
from experiments.filing import Record, origin, read, require, save, source
from experiments.networks import networks, streams
from experiments.networks.training import Learner, Scores, Steps
from experiments.options import add_data, add_results
from experiments.pages import grid, rewrite
from sal_lightning import SALCallback

NETWORKS = "mlp", "convnet-groupnorm", "gru", "vit-patch4"
STREAMS = "split-two", "permuted", "brighter", "split-five", "stationary"
STEPS, BATCH, SAMPLES = 250, 32, 2000  # default steps per task, images per step, test images per task
START, NEAR = 20, 30  # steps counted as the start, and as after a change
FROZEN = 1e6  # strength at which changes are held completely
HEADINGS = ("network", "stream", "held", "at the start", "after a change", "elsewhere", "spectrum", "learned")
NOTE = """\
Written by `python -m experiments.readings --from-records --table`, not by hand.

`SALCallback()`, told nothing, logged at every step. *At the start*, *after a change*, *elsewhere*: steps at which
something emerged, in the first 20, within 30 after a change (of each change the number, and how late the first one
came), and at all others. *Spectrum*: percent of the weights protected / neutral / volatile at the end, as held.
*Learned*: accuracy on each task when it was just learned. `frozen` is held with `strength=1e6`, which lets nothing
through.
"""


class Run(NamedTuple):
    """Parameters of a run."""

    network: str
    stream: str
    frozen: bool
    seed: int
    data: str
    each: int = STEPS  # steps per task

    @property
    def name(self) -> str:
        """File name of the run."""
        kind = f"{self.network}-{self.stream}{'-frozen' * self.frozen}"
        return f"{kind}-{self.data}-steps{self.each}-seed{self.seed}"


class Readings(Callback):
    """Records the steps with emergence."""

    def __init__(self) -> None:
        self.steps, self.emerged = 0, list[int]()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.callback_metrics["sal/emergence"]:
            self.emerged.append(self.steps)
        self.steps += 1


def run(asked: Run) -> Record:
    """Train once on the stream."""
    arrays = load(asked.data)
    stream = streams.make(asked.stream, arrays, asked.seed, asked.each, BATCH)
    L.seed_everything(asked.seed, verbose=False)
    learner = Learner(asked.network, networks.make(asked.network, round(arrays.train_x.shape[1] ** 0.5)))
    sal = SALCallback(strength=FROZEN) if asked.frozen else SALCallback()
    readings, scores = Readings(), Scores(stream, SAMPLES)
    trainer = make_trainer([sal, readings, scores], "cpu", DummyLogger(), every=1)
    with quiet():
        trainer.fit(learner, Steps(stream, asked.network, range(stream.length), joint=False).loader())
    return {
        **asked._asdict(),
        "steps": readings.steps,
        "changes": list(stream.changes),
        "emerged": readings.emerged,
        "spectrum": list(sal.spectrum()),
        "learned": scores.learned,
    } | origin("python -m experiments.readings", asked.seed, "cpu")


def cells(record: Record) -> list[str]:
    """A row of the table.

    >>> cells({"network": "mlp", "stream": "permuted", "frozen": False, "changes": [250], "emerged": [0, 252, 253, 400],
    ...        "spectrum": [1.0, 20.0, 79.0], "learned": [0.9, 0.8]})[3:]
    ['1', '2 (2 steps late)', '1', '1 / 20 / 79', '0.90, 0.80']
    """
    emerged, changes = record["emerged"], record["changes"]
    near = [[step - change for step in emerged if 0 <= step - change < NEAR] for change in changes]
    start = sum(step < START for step in emerged)
    after = ", ".join(f"{len(late)} ({late[0]} steps late)" if late else "0" for late in near)
    elsewhere = len(emerged) - start - sum(map(len, near))
    spectrum = " / ".join(f"{share:.0f}" for share in record["spectrum"])
    learned = ", ".join(f"{score:.2f}" for score in record["learned"])
    held = "all (frozen)" if record["frozen"] else "by default"
    return [record["network"], record["stream"], held, str(start), after, str(elsewhere), spectrum, learned]


def wanted(args: argparse.Namespace) -> Iterator[Run]:
    """The requested runs, and a frozen one of the longest stream with changes."""
    for network in args.networks:
        for stream in args.streams:
            for seed in args.seeds:
                yield Run(network, stream, False, seed, args.data, args.steps)
                if stream == "split-five":
                    yield Run(network, stream, True, seed, args.data, args.steps)


def page(records: Sequence[Record]) -> str:
    """The table and its provenance."""
    by_default = [record for record in records if not record["frozen"]]
    elsewhere, steps = sum(int(cells(r)[5]) for r in by_default), sum(r["steps"] for r in by_default)
    said = f"Held by default, something emerged elsewhere in {elsewhere} of {steps:,} steps.\n"
    return "\n".join([NOTE, grid(HEADINGS, map(cells, records)), said, source(records[0])])


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has no result yet, then show all requested results."""
    made = argparse.ArgumentParser(prog="python -m experiments.readings", description=__doc__)
    made.add_argument("--networks", choices=networks.NAMES, nargs="+", default=NETWORKS)
    made.add_argument("--streams", choices=tuple(streams.STREAMS), nargs="+", default=STREAMS)
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--steps", type=int, default=STEPS, help="training steps per task (default: %(default)s)")
    add_data(made)
    add_results(made, "results/readings", "readings block", "docs/field.md")
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    console, runs = Console(), list(wanted(args))
    with show.bar(console) as progress:
        bar = progress.add_task("readings", total=len(runs))
        for asked in runs:
            file = args.out / f"{asked.name}.json"
            if args.force or not (args.from_records or file.is_file()):
                save(run(asked), file)
            progress.advance(bar)
    files = [args.out / f"{asked.name}.json" for asked in runs]
    records = require([read(file) for file in files if file.is_file()], args.out)
    console.print(show.table("readings", HEADINGS, [cells(record) for record in records]))
    if args.table:
        rewrite(args.table, "readings", page(records))


if __name__ == "__main__":
    main()
