"""The training of a network: a module of Lightning, its batches, and a fit with early stopping."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import WARNING, getLogger
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from safi_agent.ledger import SCORES
from safi_agent.local.encoder import LAYERS, Encoder
from safi_agent.local.examples import Example, question
from safi_agent.local.network import Network, loss, pair_features
from sal_lightning import SALCallback


@dataclass(frozen=True)
class Settings:
    """How a judge is trained."""

    train_encoder: bool = False  #: whether the encoder is trained too
    layers: int = LAYERS  #: of the encoder that are kept
    seed: int = 0  #: of the division of prompts, of new weights and of the order of examples
    target: float = 0.9  #: agreement from which on findings are sure, in (0.5, 1]
    epochs: int = 100  #: at most
    patience: int = 8  #: epochs without a lower validation loss, after which training stops
    batch: int = 32  #: examples of a step
    learning_rate: float = 3e-3
    encoder_rate: float = 5e-5  #: learning rate of the encoder, if it is trained
    weight_decay: float = 0.05  #: of the heads and of the layer that they share
    most_windows: int = 4  #: of a text, while the encoder is trained; a reading uses all
    sal: Mapping[str, Any] = field(default_factory=dict)  #: arguments of SALCallback

    def __post_init__(self) -> None:
        if not 0.5 < self.target <= 1:
            raise ValueError(f"target: expected a number in (0.5, 1], got {self.target!r}.")
        for name in ("layers", "epochs", "patience", "batch", "most_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}.")


class Rows(NamedTuple):
    """Examples as tensors, except for their texts."""

    examples: list[Example]
    heads: Tensor  #: (n,) number of the head
    scores: Tensor  #: (n,) index into the four scores
    weights: Tensor  #: (n,)

    @property
    def broken(self) -> Tensor:
        """Whether the value is broken, (n,)."""
        return self.scores == 0

    @property
    def questions(self) -> list[str]:
        """What is read beside the answers."""
        return [question(one.case) for one in self.examples]

    @property
    def answers(self) -> list[str]:
        """The answers."""
        return [one.case.answer for one in self.examples]


def as_rows(examples: Sequence[Example], keys: Sequence[str]) -> Rows:
    """Number the heads of some examples; ``keys`` are the normalized names of the heads' values."""
    return Rows(
        list(examples),
        torch.tensor([keys.index(one.value) for one in examples], dtype=torch.long),
        torch.tensor([SCORES.index(one.score) for one in examples], dtype=torch.long),
        torch.tensor([one.weight for one in examples], dtype=torch.float32),
    )


class Module(L.LightningModule):
    """The network, and the encoder if it is trained too.

    A batch has ``inputs`` of the network, or ``texts`` for the encoder, with ``heads``, ``scores`` and ``weights``.
    """

    def __init__(self, network: Network, encoder: Encoder | None, settings: Settings) -> None:
        super().__init__()
        self.network, self.encoder, self.settings = network, encoder, settings

    @override
    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits, (n, 4)."""
        inputs = batch.get("inputs")
        if inputs is None:
            assert self.encoder is not None
            questions, answers = batch["texts"]
            vectors = self.encoder([*questions, *answers], self.settings.most_windows)
            inputs = self.network.project(pair_features(*vectors.split(len(questions))))
        logits: Tensor = self.network(inputs, batch["heads"])
        return logits

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch."""
        return loss(self(batch), batch["scores"], batch["weights"])

    @override
    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return self.loss(batch)

    @override
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=len(batch["heads"]), prog_bar=True)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": list(self.network.parameters()), "lr": self.settings.learning_rate}]
        if self.encoder is not None:
            encoder = {"params": list(self.encoder.parameters()), "lr": self.settings.encoder_rate, "weight_decay": 0.0}
            groups.append(encoder)
        # The penalty of a ridge regression, which is in the gradient.
        return torch.optim.Adam(groups, weight_decay=self.settings.weight_decay)


def batches(rows: Rows, inputs: Tensor | None, settings: Settings, shuffle: bool) -> DataLoader[dict[str, Any]]:
    """Batches of some rows; with the texts if there are no ``inputs``."""

    def collate(chosen: list[int]) -> dict[str, Any]:
        at = torch.tensor(chosen)
        texts = ([question(rows.examples[i].case) for i in chosen], [rows.examples[i].case.answer for i in chosen])
        given = {"texts": texts} if inputs is None else {"inputs": inputs[at]}
        return {**given, "heads": rows.heads[at], "scores": rows.scores[at], "weights": rows.weights[at]}

    order = torch.Generator().manual_seed(settings.seed)
    numbers: Any = range(len(rows.examples))
    size = settings.batch if shuffle or inputs is None else len(rows.examples)
    return DataLoader(numbers, batch_size=size, shuffle=shuffle, generator=order, collate_fn=collate)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's hints on workers, devices and loggers, and keep the caller's random numbers."""
    logger = getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(WARNING)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            for message in (
                ".*does not have many workers",
                "GPU available but not used",
                r".*isinstance\(treespec, LeafSpec\)",
                ".*Checkpoint directory .* exists and is not empty",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)


class Fit(NamedTuple):
    """The end of a training."""

    epochs: int
    best_epoch: int
    state: dict[str, Any]  #: of SAL, at the best epoch


def fit(
    module: Module,
    train: DataLoader[dict[str, Any]],
    validation: DataLoader[dict[str, Any]],
    callback: SALCallback | None,
    work: Path,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    """Train until the validation loss stops decreasing, and load the weights of the best epoch.

    A training that was interrupted is continued from its last epoch in ``work``.
    """
    module.train()
    best = ModelCheckpoint(work, "best", monitor="val_loss", save_last=True, enable_version_counter=False)
    guards = [] if callback is None else [callback]
    with quiet():
        trainer = L.Trainer(
            max_epochs=module.settings.epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[*guards, EarlyStopping("val_loss", patience=module.settings.patience), best, *callbacks],
            logger=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        last = work / "last.ckpt"
        trainer.fit(module, train, validation, ckpt_path=last if last.is_file() else None, weights_only=True)
        kept = torch.load(best.best_model_path, weights_only=True)
    module.load_state_dict(kept["state_dict"])
    state = {} if callback is None else kept["callbacks"].get(callback.state_key, {})
    return Fit(trainer.current_epoch, int(kept["epoch"]) + 1, state)
