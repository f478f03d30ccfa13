"""The card of a local judge: what it was trained on, how, and how far it agrees with what was held out."""

from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from safi_agent.calibration.card import Agreement
from safi_agent.calibration.card_page import page, table
from safi_agent.errors import validation_message
from safi_agent.values import ValueSet, label

_FROZEN = ConfigDict(frozen=True, extra="forbid")
CARD, PAGE = "card.json", "card.md"


class Data(BaseModel):
    """The data of one training."""

    model_config = _FROZEN

    sha256: str  #: of all examples
    human: int  #: human labels
    audits: int  #: findings of language models
    prompts: int  #: number of different prompts
    train: int  #: examples
    validation: int  #: examples for early stopping, temperatures and confidences
    test: int  #: examples of the figures


class Head(BaseModel):
    """One value of a judge."""

    model_config = _FROZEN

    value: str  #: its name
    temperature: float  #: by which its logits are divided
    confidence: float | None  #: from which on a finding is sure; None if none is
    held_out: int  #: validation examples by which both were chosen
    created: str  #: when the head was last trained on data of its value


class JudgeCard(BaseModel):
    """What a judge is and what it was measured to do. Its hash, in each record, stands for all files of the judge."""

    model_config = _FROZEN

    format: Literal[1] = 1
    created: str  #: in UTC
    version: str  #: of the package
    encoder: str  #: name of the encoder's folder
    layers: int  #: of the encoder that are kept
    trained: Literal["heads", "encoder"]  #: whether the encoder was trained too
    value_set: ValueSet
    heads: tuple[Head, ...]  #: in the order of the weights
    previous: str = ""  #: SHA-256 of the card of the judge that training started from
    seed: int  #: of the division of prompts and of training
    target: float  #: agreement for which confidences were chosen
    data: Data
    epochs: int  #: that were trained
    best_epoch: int  #: whose weights were kept, from 1
    novelty: float  #: above which a prompt is new, in [0, 1]
    prompts: int  #: number of prompts in the field of novelty, those of earlier trainings too
    sure: float | None  #: share of the test examples on which the judge is sure
    sure_agreement: float | None  #: share of these on which it agrees
    calibration_error: float | None  #: expected, on the test examples, in [0, 1]
    uncalibrated_error: float | None  #: the same without temperatures
    rows: list[Agreement]  #: of the test examples; those of heads without new data are of an earlier judge
    files: dict[str, str]  #: SHA-256 of each file of the folder, by its path
    warnings: list[str] = []

    def head(self, key: str) -> Head | None:
        """The head of a value, by its normalized name."""
        return next((head for head in self.heads if label(head.value) == key), None)


def read_card(folder: str | Path) -> tuple[JudgeCard, str]:
    """The card of a judge's folder, and the SHA-256 of its bytes.

    Raises:
        ValueError: the folder has no card of a judge.
    """
    file = Path(folder) / CARD
    if not file.is_file():
        raise ValueError(f"expected a folder of a local judge, as safi train-judge writes it, got {str(folder)!r}.")
    content = file.read_bytes()
    try:
        return JudgeCard.model_validate_json(content), sha256(content).hexdigest()
    except ValidationError as error:
        raise ValueError(f"{file}: expected the card of a judge: {validation_message(error)[:200]}") from None


def to_markdown(card: JudgeCard) -> str:
    """The card as a page of Markdown."""
    origin = f"{card.created}, sal-lightning {card.version}."
    return page(f"Local judge of {card.value_set.name}", origin, table(card.rows), (*about(card), *card.warnings))


def about(card: JudgeCard) -> list[str]:
    """Sentences on what the judge was trained on and how."""
    data, trained = card.data, {"heads": "heads only", "encoder": "heads and encoder"}[card.trained]
    sure = "" if card.sure is None else f"It is sure of {card.sure:.0%} of the test examples"
    agreeing = "." if card.sure_agreement is None else f" and agrees with {card.sure_agreement:.0%} of these."
    errors = ""
    if card.calibration_error is not None and card.uncalibrated_error is not None:
        errors = (
            f"Expected calibration error on them: {card.calibration_error:.3f}; without temperatures "
            f"{card.uncalibrated_error:.3f}."
        )
    previous = f"Training started from the judge {card.previous[:12]}." if card.previous else ""
    sentences = [
        f"Encoder {card.encoder}, {card.layers} layers; trained: {trained}, {card.epochs} epochs, of which the weights "
        f"of number {card.best_epoch} are kept. {previous}",
        f"{data.human:,} human labels and {data.audits:,} findings of a language model on {data.prompts:,} prompts, "
        f"with SHA-256 {data.sha256}: {data.train:,} for training, {data.validation:,} for validation, {data.test:,} "
        f"for the figures, divided by prompt (seed {card.seed}).",
        f"{sure}{agreeing} The confidences were chosen on the validation examples for an agreement of "
        f"{card.target:.0%}."
        if sure
        else "",
        errors,
        f"A prompt is new above a novelty of {card.novelty:.3f}.",
    ]
    return [sentence.strip() for sentence in sentences if sentence]
