"""One run: a data set, a way to learn and a fold; and its record."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from experiments import filing
from experiments.judge import data
from experiments.judge.data import Divided
from experiments.provenance import installed
from safi_agent.local.encoder import Encoder, has_native_bfloat16
from safi_agent.local.examples import Example
from safi_agent.local.judge import opinion
from safi_agent.local.module import Settings, as_rows, quiet
from safi_agent.local.network import Network, pair_features
from safi_agent.local.training import calibrated_heads, features_of, logits_of, run, sal_callback, texts_of, vectors

Task = Literal["agreement", "sequence", "policies"]
TASKS: tuple[Task, ...] = ("agreement", "sequence", "policies")
METHODS = ("joint", "plain", "sal", "sal-fit", "replay")  # of sequences
NOVELTY = {"consolidate_on": "novelty"}  # of ``sal``, which detects changes; ``sal-fit`` is what train-judge uses
KEPT = 16  # examples of each earlier value that replay keeps


@dataclass(frozen=True)
class Run:
    """A run. Whether the encoder is trained, and at most how many examples of each value are used for that."""

    task: Task
    data: data.Data
    method: str = "joint"
    fold: int = 0
    train_encoder: bool = False
    most: int | None = None

    @property
    def name(self) -> str:
        """File name of the record."""
        encoder = "whole" if self.train_encoder else "frozen"
        most = "" if self.most is None else f"-most{self.most}"
        return f"{self.task}-{self.data}-{encoder}-{self.method}{most}-fold{self.fold}"

    @property
    def options(self) -> str:
        """The options that repeat it."""
        encoder = " --train-encoder" if self.train_encoder else ""
        most = "" if self.most is None else f" --most {self.most}"
        method = "" if self.task == "agreement" else f" --methods {self.method}"
        return f"--tasks {self.task} --data {self.data}{method} --folds {self.fold}{encoder}{most}"

    @property
    def settings(self) -> Settings:
        """How the judge is trained. A trained encoder is kept cheap: two layers, short texts, few epochs."""
        if not self.train_encoder:
            return Settings(seed=self.fold)
        cheap = {"layers": 2, "epochs": 4, "patience": 4, "batch": 8, "most_windows": 1}
        return Settings(seed=self.fold, train_encoder=True, encoder_rate=1e-4, **cheap)  # type: ignore[arg-type]


WINDOW = 64  # tokens of a text while an encoder is trained


class Encoded:
    """An encoder and the vectors of all texts, which are kept in a file."""

    def __init__(self, folder: Path, run: Run, examples: Sequence[Example], cache: Path) -> None:
        self.encoder = Encoder.load(folder, run.settings.layers)
        if run.train_encoder:
            self.encoder.window = WINDOW
        else:
            self.encoder.for_inference()
        cache.mkdir(parents=True, exist_ok=True)
        file = cache / f"{folder.name}-{run.settings.layers}-{self.encoder.window}.pt"
        self.known: Mapping[str, Tensor] = vectors(self.encoder, texts_of([examples]), file)


def measure(run: Run, pyrit: Path, encoder: Path, cache: Path) -> dict[str, Any]:
    """Train and test; the figures of a record."""
    examples = data.load(pyrit, run.data)
    if run.task == "policies":
        examples = data.under_policies(examples)
    divided = data.divide(examples, run.fold).limited(run.most, run.fold)
    encoded = Encoded(encoder, run, examples, cache)
    started = time.process_time()
    torch.manual_seed(run.fold)
    figures = agreement(run, divided, encoded) if run.task == "agreement" else sequence(run, divided, encoded)
    return {**figures, "cpu_seconds": round(time.process_time() - started, 1)}


def start(keys: Sequence[str], heads: int, divided: Divided, encoded: Encoded) -> Network:
    """A new network whose principal components are those of the training examples, which have these values."""
    network = Network(4 * encoded.encoder.width, heads)
    network.fit_projection(features_of(as_rows(divided.train, keys), encoded.known))
    return network


def learn(
    run: Run, network: Network, keys: Sequence[str], divided: Divided, encoded: Encoded, callback: Any = None
) -> None:
    """One training, with early stopping on the validation examples."""
    rows = {part: as_rows(given, keys) for part, given in divided.parts.items()}
    with tempfile.TemporaryDirectory() as work, quiet():
        torch.manual_seed(run.fold)
        _run(network, encoded, rows, run.settings, callback, Path(work))


def _run(network: Network, encoded: Encoded, rows: Any, settings: Settings, callback: Any, work: Path) -> None:
    run(network, encoded.encoder, rows, encoded.known, settings, callback, work)


def after(network: Network, run: Run, encoded: Encoded, examples: Sequence[Example]) -> Mapping[str, Tensor]:
    """The vectors of these examples' texts, anew if the encoder was trained."""
    return vectors(encoded.encoder, texts_of([examples])) if run.train_encoder else encoded.known


def agreement(run: Run, divided: Divided, encoded: Encoded) -> dict[str, Any]:
    """All values at once: each finding on the test part."""
    keys = sorted({one.value for one in divided.train})
    network = start(keys, len(keys), divided, encoded)
    learn(run, network, keys, divided, encoded)
    known = after(network, run, encoded, [*divided.validation, *divided.test])
    validation, test = as_rows(divided.validation, keys), as_rows(divided.test, keys)
    held_out = logits_of(network, validation, known)
    heads = calibrated_heads(held_out, validation, keys, {key: key for key in keys}, None, run.settings.target)
    plain = [replace_temperature(head) for head in heads]
    logits = logits_of(network, test, known)
    found = [opinion(row, heads[i]) for row, i in zip(logits, test.heads.tolist(), strict=True)]
    raw = [opinion(row, plain[i]) for row, i in zip(logits, test.heads.tolist(), strict=True)]
    tuned = [opinion(row, heads[i]) for row, i in zip(held_out, validation.heads.tolist(), strict=True)]
    return {
        "findings": [
            {
                "value": one.value,
                "human": example.broken,
                "judge": one.score < 0,
                "confidence": one.confidence,
                "uncalibrated": other.confidence,
            }
            for one, other, example in zip(found, raw, divided.test, strict=True)
        ],
        "validation": [
            {"confidence": one.confidence, "agrees": (one.score < 0) == example.broken}
            for one, example in zip(tuned, divided.validation, strict=True)
        ],
        "temperature": heads[0].temperature,
        "train": len(divided.train),
    }


def replace_temperature(head: Any) -> Any:
    """The head without its temperature."""
    return head.model_copy(update={"temperature": 1.0})


def sequence(run: Run, divided: Divided, encoded: Encoded) -> dict[str, Any]:
    """Values one after another, in the order of their names turned by the fold; accuracy on each after each stage."""
    keys = sorted({one.value for one in divided.train})
    if run.task == "sequence":
        turn = run.fold % len(keys)
        keys = keys[turn:] + keys[:turn]
    else:
        keys = ["refuse", "comply"]
    if run.method == "joint":
        network = start(keys, len(keys), divided, encoded)
        learn(run, network, keys, divided, encoded)
        return {"order": keys, "accuracy": [accuracies(network, run, keys, divided, encoded)]}
    network = start(keys[:1], 0, divided.of(keys[:1]), encoded)
    guards = {"sal": replace(run.settings, sal=NOVELTY), "sal-fit": run.settings}
    callback = sal_callback(guards[run.method], None) if run.method in guards else None
    kept: list[Example] = []
    stages = []
    for at, key in enumerate(keys):
        network.add_heads(1)
        stage = divided.of([key])
        now = Divided([*stage.train, *kept], stage.validation, stage.test)
        learn(run, network, keys[: at + 1], now, encoded, callback)
        if run.method == "replay":
            kept += data._drawn(stage.train, KEPT, run.fold)
        stages.append(accuracies(network, run, keys[: at + 1], divided, encoded))
    events = list(callback.events) if callback is not None else []
    return {"order": keys, "accuracy": stages, "events": events}


def accuracies(
    network: Network, run: Run, keys: Sequence[str], divided: Divided, encoded: Encoded
) -> dict[str, list[int]]:
    """For each value, the number of test examples that are judged as by people, and the number of all."""
    mine = divided.of(keys).test
    rows = as_rows(mine, keys)
    logits = logits_of(network, rows, after(network, run, encoded, mine))
    agrees = ((logits.softmax(-1)[:, 0] >= 0.5) == rows.broken).tolist()
    counts = {key: [0, 0] for key in keys}
    for agree, one in zip(agrees, mine, strict=True):
        counts[one.value][0] += agree
        counts[one.value][1] += 1
    return counts


def record(run: Run, pyrit: Path, encoder: Path, cache: Path) -> filing.Record:
    """The record of a run."""
    command = f"python -m experiments.judge --pyrit {pyrit.name} --encoder {encoder.name} {run.options}"
    made = filing.origin(command, run.fold, "cpu")
    made["versions"]["transformers"] = installed("transformers")
    return {**made, "run": asdict(run), **measure(run, pyrit, encoder, cache)}


WORDS = (50, 150, 300, 1000)  # of the answers that are timed
REPEATS = 15


def cost(pyrit: Path, folder: Path) -> filing.Record:
    """The time of a judge of eight values, as it is trained by default, for answers of some lengths: a record."""
    examples = data.load(pyrit, "harm")
    divided = data.divide(examples, 0)
    encoder = Encoder.load(folder, Settings().layers).for_inference()
    keys = sorted({one.value for one in divided.train})
    words = " ".join(one.case.answer for one in examples).split()
    network = Network(4 * encoder.width, len(keys)).eval()
    prompt = examples[0].case.prompt

    def judge(answer: str) -> None:
        with torch.inference_mode():
            vectors = encoder.encode([prompt, answer])
            network.all_heads(network.project(pair_features(vectors[:1], vectors[1:])))

    found = {}
    for count in WORDS:
        times = []
        for repeat in range(REPEATS):
            answer = " ".join(words[repeat * count : (repeat + 1) * count])
            started = time.process_time()
            judge(answer)
            times.append(1000 * (time.process_time() - started))
        found[str(count)] = round(sorted(times)[REPEATS // 2], 2)
    made = filing.origin(
        f"python -m experiments.judge --pyrit {pyrit.name} --encoder {folder.name} --folds --cost", 0, "cpu"
    )
    made["versions"]["transformers"] = installed("transformers")
    run = {"task": "cost", "data": "harm", "method": "", "fold": 0, "train_encoder": False, "most": None}
    return {**made, "run": run, "milliseconds": found, "bfloat16": has_native_bfloat16()}
