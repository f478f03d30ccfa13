"""One run of a network on a stream, with a method and a seed: detected changes, and accuracy on each task."""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch import Callback

from experiments.continual.data import load
from experiments.continual.methods import parse
from experiments.continual.protocol import quiet
from experiments.continual.protocol import trainer as make_trainer
from experiments.filing import Record, origin
from experiments.networks import networks, streams
from experiments.networks.ewc import EWC
from experiments.networks.fisher_variants import FISHERS, measured
from experiments.networks.networks import MOBILENET
from experiments.networks.objective import DENOISER
from experiments.networks.slda import StreamingLDA
from experiments.networks.training import Learner, Scores, Steps, Tell
from sal_lightning import SALCallback

METHODS = ("plain", "sal", "told", "joint")  # without SAL; SAL by default; SAL with known task ends; all tasks at once
BASELINES = ("ewc", "slda")  # elastic weight consolidation; streaming linear discriminant analysis
VARIED = ("sal", "told", "ewc")  # methods with options: those of SALCallback and fisher, or strength
SAMPLES = 2000  # samples of each test set
FASHION = "fashion-mnist"
STEPS, BATCH = 250, 32
STREAMS_OF = {  # streams that are informative for these networks; default: all
    DENOISER: ("split-two", "split-two-fits", "split-five", "permuted", "brighter", "stationary"),  # it has no labels
    MOBILENET: ("split-two", "split-five", "brighter", "stationary"),
}


class Run(NamedTuple):
    """Parameters of a run."""

    network: str
    stream: str
    method: str
    seed: int
    data: str
    steps: int = STEPS
    batch: int = BATCH

    @property
    def command(self) -> str:
        """The command line that repeats it."""
        named = f"--networks {self.network} --streams {self.stream} --methods {self.method} --seeds {self.seed}"
        line = f"python -m experiments.networks {named} --data {self.data} --steps {self.steps} --batch {self.batch}"
        return line + (" --weights FOLDER" if self.network == MOBILENET else "")


def known(method: str) -> str:
    """Validate a method, with options for those in VARIED: ``told:pull=0,strength=4``; returns it.

    SAL's option ``fisher``, one of FISHERS, selects how the Fisher information of its pull is measured.

    Raises:
        ValueError: the method or an option is unknown.
    """
    name, options = parse(method)
    if name not in (*METHODS, *BASELINES) or (options and name not in VARIED):
        names = (*METHODS, *BASELINES)
        raise ValueError(f"Expected method to be one of {names}, with options {VARIED}, got {method!r}.")
    if "fisher" in options and (name == "ewc" or options["fisher"] not in FISHERS):
        raise ValueError(f"Expected fisher to be one of {FISHERS}, of sal and told, got {method!r}.")
    return method


def useful(run: Run, first_seed: int) -> bool:
    """Whether a run adds information to other runs.

    Left out are all methods but SAL on the stationary stream; methods that depend on task ends, and joint training, on
    the stream with new labels for old images, where tasks contradict each other; joint training in two fits, which
    draws the same data as in one; streaming LDA without new classes; further seeds of plain and joint training, of the
    baselines and of the stationary stream; and further seeds, and all but four streams, of the costly MobileNetV2.

    >>> useful(Run("mlp", "stationary", "told", 0, "mnist"), 0), useful(Run("mlp", "split-two", "joint", 1, "mnist"), 0)
    (False, False)
    """
    without = {
        "stationary": ("plain", "told", "joint", *BASELINES),
        "labels": ("told", "joint", *BASELINES),
        "split-two-fits": ("joint", "slda"),
        "permuted": ("slda",),
        "brighter": ("slda",),
    }
    method, _ = parse(run.method)
    once = method in ("plain", "joint", *BASELINES) or run.network == MOBILENET or run.stream == "stationary"
    left_out = run.stream not in STREAMS_OF.get(run.network, (run.stream,))
    left_out |= method == "slda" and run.network == DENOISER  # no classes
    return not (method in without.get(run.stream, ()) or left_out or (once and run.seed != first_seed))


def callbacks(run: Run, stream: streams.Stream) -> Iterator[Callback]:
    """The callbacks of the method."""
    method, options = parse(run.method)
    options.pop("fisher", None)
    if method == "ewc":
        ewc = EWC(**options)
        yield from (ewc, Tell(lambda: ewc.end_task(stream.tasks[: ewc.task + 1]), stream.changes))
    elif method == "sal":
        yield SALCallback(**options)
    elif method == "told" and len(stream.fits) > 1:
        yield SALCallback(consolidate_on="fit", **options)
    elif method == "told":
        sal = SALCallback(consolidate_on=None, **options)
        yield from (sal, Tell(sal.consolidate, stream.changes))


def run(asked: Run, weights: Path | None = None) -> Record:
    """Train once on the stream.

    Raises:
        ValueError: the network, stream or method is unknown, or the network's weights are missing.
        ArithmeticError: the training diverged.
    """
    known(asked.method)
    arrays = load(asked.data)
    stream = streams.make(asked.stream, arrays, asked.seed, asked.steps, asked.batch)
    L.seed_everything(asked.seed, verbose=False)
    side = round(arrays.train_x.shape[1] ** 0.5)
    kind = StreamingLDA if asked.method == "slda" else Learner
    learner = kind(asked.network, networks.make(asked.network, side, weights))
    scores, method = Scores(stream, SAMPLES), list(callbacks(asked, stream))
    started = time.process_time()
    _, options = parse(asked.method)
    with measured(options.get("fisher", FISHERS[0]), learner.net):
        fit(learner, stream, [*method, scores], asked.method == "joint")
    seconds = time.process_time() - started
    if not all(map(math.isfinite, scores.learned + scores.kept)):
        raise ArithmeticError(
            f"Expected finite scores, got {scores.learned} when learned and {scores.kept} at the end."
        )
    sal = next((c for c in method if isinstance(c, SALCallback)), None)
    return {
        **asked._asdict(),
        "length": stream.length,
        "changes": list(stream.changes),
        "events": list(sal.events) if sal else [],
        "evidence": [layer.evidence[step] for layer in sal.layers for step in layer.events] if sal else [],
        "warned": sorted(sal.user_warnings.given) if sal else [],
        "learned": scores.learned,
        "kept": scores.kept,
        "cpu_seconds": round(seconds, 1),
    } | origin(asked.command, asked.seed, "cpu")


def fit(learner: Learner, stream: streams.Stream, callbacks: Sequence[Callback], joint: bool) -> None:
    """Train on each part of the stream in a separate fit, with a new optimizer and the same callbacks."""
    for span in stream.spans():
        with quiet():
            warnings.filterwarnings("ignore", message="Found .* in eval mode")  # intended for one of the networks
            warnings.filterwarnings("ignore", module="sal_lightning")  # its warnings are recorded
            steps = Steps(stream, learner.name, span, joint).loader()
            make_trainer(callbacks, "cpu").fit(learner, train_dataloaders=steps)


def data_of(network: str, data: str) -> str:
    """The data set of a network: Fashion-MNIST in place of MNIST for MobileNetV2."""
    return FASHION if network == MOBILENET and data == "mnist" else data


def measures(record: Record) -> dict[str, Any]:
    """Mean score over the tasks before the last, at the end (``old``) and when just learned (``was``); of the last.

    >>> measures({"learned": [0.9, 0.7, 0.8], "kept": [0.5, 0.6, 0.8]})
    {'was': 0.8, 'old': 0.55, 'new': 0.8}
    """
    earlier = len(record["kept"]) - 1 or 1  # for a single task, this task
    was, old = (sum(record[key][:earlier]) / earlier for key in ("learned", "kept"))
    return {"was": was, "old": old, "new": record["kept"][-1]}
