"""One run: a pretrained model, a method with a strength, and one new text after another; and its record."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from experiments import provenance
from experiments.continual.protocol import quiet
from experiments.finetune.measures import Measured, Measures, log_probabilities, measure
from experiments.finetune.methods import METHODS, Start
from experiments.finetune.model import FineTuned, load
from experiments.finetune.settings import Settings
from experiments.finetune.texts import NEW, Batches, known, packed, rows
from sal_lightning.integrations.own_samples import own_samples
from sal_lightning.remembering import evaluating

PLAIN, MIXED = "plain", "mixed"
EARLY = (0.25, 0.5)  # of the steps, after which plain training is measured too: fewer steps
STRAIGHT = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the way from the weights before to those after plain training: WiSE-FT
CLIPPED = 1.0  # largest norm of the gradient
BATCH = 16  # samples that are generated together


@dataclass(frozen=True)
class Result:
    """All data to interpret and reproduce a result, as JSON values."""

    command: str
    settings: Settings
    commit: str
    hardware: dict[str, str | int]
    versions: dict[str, str]
    data: dict[str, str]  # md5 of each new text
    before: Measures
    stages: list[Measures]  # after each new text
    others: dict[str, Measures]  # of plain training: after fewer steps, and between the weights before and after
    seconds: list[float]  # of the method's preparation, then of each stage
    learning: int  # number of trained weights
    memory: dict[str, float]
    events: list[int]

    def record(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


class Texts:
    """All texts for one model and seed, as tokens.

    Args:
        net: the model before.
        tokenizer: its tokenizer.
        folder: with the files of the new texts.
        settings: sizes and seed.
        cache: folder for its own samples.
    """

    def __init__(
        self,
        net: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        settings: Settings,
        cache: Path,
    ) -> None:
        scale, seed = settings.scale, settings.seed
        cache.mkdir(parents=True, exist_ok=True)
        self.new = {name: NEW[name](folder, tokenizer) for name in settings.texts}
        self.samples, held_out = (
            own_samples(net, n, scale.context, batch_size=BATCH, seed=2 * seed + i, file=cache / f"{name}-{seed}.pt")
            for i, (name, n) in enumerate([("samples", scale.samples), ("held-out", scale.measured)])
        )
        texts = {f"{name} trained": text.train for name, text in self.new.items()}
        texts |= {name: text.test for name, text in self.new.items()} | known(tokenizer)
        some = {name: spread(rows(text, scale.context), scale.measured) for name, text in texts.items()}
        with evaluating(net):
            self.measured = Measured(some, held_out, [log_probabilities(net, batch) for batch in held_out], tokenizer)

    def batches(self, name: str, settings: Settings) -> DataLoader[Tensor]:
        """The batches of a stage."""
        scale = settings.scale
        share = settings.strength if settings.method == MIXED else 0
        made = Batches(
            self.new[name].train,
            packed(self.samples),
            scale.context,
            scale.batch,
            scale.steps,
            settings.seed,
            round(share * scale.batch),
        )
        return DataLoader(made, batch_size=None)


def spread(text: Tensor, n: int) -> Tensor:
    """At most n rows at equal distances."""
    return text[:: max(1, len(text) // n)][:n]


class Measuring(Callback):
    """Measures the model after some of the steps.

    Args:
        at: the numbers of steps.
        on: what to measure.
    """

    def __init__(self, at: Sequence[int], on: Measured) -> None:
        self.at, self.on = at, on
        self.found: dict[str, Measures] = {}

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 in self.at:
            self.found[f"steps {batch_idx + 1}"] = measure(pl_module.net, self.on)


def straight(net: PreTrainedModel, before: dict[str, Tensor], on: Measured) -> dict[str, Measures]:
    """Measures between the weights before and the present ones, which are restored (WiSE-FT, Wortsman et al. 2022)."""
    after = {name: w.clone() for name, w in net.state_dict().items()}
    found = {}
    for part in STRAIGHT:
        net.load_state_dict({name: torch.lerp(before[name], w, part) for name, w in after.items()})
        found[f"wise {part:g}"] = measure(net, on)
    net.load_state_dict(after)
    return found


def train(
    model: FineTuned, batches: DataLoader[Tensor], callbacks: Sequence[Callback], accelerator: str, precision: Any
) -> float:
    """Train one stage; returns its duration in seconds."""
    with quiet():
        trainer = L.Trainer(
            max_epochs=1,
            accelerator=accelerator,
            devices=1,
            precision=precision,
            callbacks=list(callbacks),
            gradient_clip_val=CLIPPED,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        started = time.perf_counter()
        trainer.fit(model, batches)
        seconds = time.perf_counter() - started
    model.to(trainer.strategy.root_device)  # Lightning moves it to the CPU at the end
    return seconds


def run(
    settings: Settings,
    model: Path,
    folder: Path,
    cache: Path,
    *,
    accelerator: str = "cpu",
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train through the stages; returns the result."""
    method = METHODS[settings.method]
    net, tokenizer = load(model)
    module = FineTuned(net, settings.lr, settings.scale.steps)
    module.to("cuda" if accelerator in ("gpu", "cuda") else "cpu")
    texts = Texts(net, tokenizer, folder, settings, cache)
    before, on = measure(net, texts.measured), texts.measured
    L.seed_everything(settings.seed, verbose=False)
    started = time.perf_counter()
    guard = method.prepare(Start(module, texts.samples), settings.strength)
    seconds, stages, others = [time.perf_counter() - started], [], {}
    alone = settings.method == PLAIN and len(settings.texts) == 1
    weights = {name: w.clone() for name, w in net.state_dict().items()} if alone else {}
    early = Measuring([round(part * settings.scale.steps) for part in EARLY] if alone else [], on)
    for name in settings.texts:
        guards = [*([guard] if guard else []), early, *callbacks]
        seconds.append(train(module, texts.batches(name, settings), guards, accelerator, settings.scale.precision))
        stages.append(measure(module.net, on))
    if alone:
        others = early.found | straight(net, weights, on)
    return Result(
        command=settings.command,
        settings=settings,
        commit=provenance.commit(),
        hardware=provenance.hardware(accelerator),
        versions=provenance.versions() | {name: provenance.installed(name) for name in ("transformers", "peft")},
        data={name: text.md5 for name, text in texts.new.items()},
        before=before,
        stages=stages,
        others=others,
        seconds=[round(s, 3) for s in seconds],
        learning=sum(p.numel() for p in module.learning()),
        memory=getattr(guard, "memory", dict)(),
        events=list(getattr(guard, "events", [])),
    )
