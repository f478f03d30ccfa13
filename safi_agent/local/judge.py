"""A local judge: it reads an answer and gives, for each of its values, a score, a confidence and its probabilities."""

import threading
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from safi_agent.calibration.labels import Case
from safi_agent.ledger import SCORES
from safi_agent.local.card import CARD, PAGE, Head, JudgeCard, read_card
from safi_agent.local.encoder import Encoder
from safi_agent.local.examples import question
from safi_agent.local.network import Network, pair_features
from safi_agent.local.novelty import Novelty
from safi_agent.values import label

ENCODER, WEIGHTS, NOVELTY, STATE = "encoder", "weights.safetensors", "novelty.pt", "sal.pt"


class Opinion(NamedTuple):
    """What a judge says of an answer on one value."""

    value: str  #: its name
    score: float  #: -1, 0, 0.5 or 1
    confidence: float  #: calibrated probability in [0.5, 1] that people agree on broken or not
    sure: bool  #: whether the confidence is at least that of the card
    probabilities: tuple[float, ...]  #: of the scores -1, 0, 0.5 and 1


class Reading(NamedTuple):
    """What a judge says of an answer."""

    opinions: dict[str, Opinion]  #: by the normalized name of the value
    novelty: float  #: of the prompt, in [0, 1]
    new: bool  #: whether that is above the card's


class LocalJudge:
    """A judge from a folder. Thread-safe: readings of several threads take turns.

    Args:
        encoder: of texts.
        network: on the encoder's vectors, with a head per value of the card.
        novelty: of prompts.
        card: what it is.
        card_sha256: the hash of the card.
    """

    def __init__(self, encoder: Encoder, network: Network, novelty: Novelty, card: JudgeCard, card_sha256: str) -> None:
        self.encoder, self.network, self.novelty = encoder.for_inference(), network.eval(), novelty
        self.card, self.card_sha256 = card, card_sha256
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load a judge.

        Raises:
            ValueError: it is not the folder of a judge, or a file is missing or differs from what the card says.
        """
        folder = Path(folder)
        card, card_sha256 = read_card(folder)
        check_files(folder, card)
        network, novelty = load_network(folder, card), Novelty.load(folder / NOVELTY)
        return cls(Encoder.load(folder / ENCODER), network, novelty, card, card_sha256)

    def read(self, cases: Sequence[Case]) -> list[Reading]:
        """Read some answers, all windows of all texts in batches."""
        if not cases:
            return []
        with self._lock, torch.inference_mode():
            texts = list(dict.fromkeys(text for case in cases for text in (question(case), case.answer)))
            vectors = dict(zip(texts, self.encoder.encode(texts), strict=True))
            questions = torch.stack([vectors[question(case)] for case in cases])
            answers = torch.stack([vectors[case.answer] for case in cases])
            logits = self.network.all_heads(self.network.project(pair_features(questions, answers)))
            novelties = self.novelty.measure(questions[:, -self.encoder.size :])
        return [self._reading(row, novelty) for row, novelty in zip(logits, novelties, strict=True)]

    def _reading(self, logits: Tensor, novelty: float) -> Reading:
        """From the logits of all heads, (heads, 4)."""
        opinions = {label(head.value): opinion(row, head) for row, head in zip(logits, self.card.heads, strict=True)}
        return Reading(opinions, round(novelty, 4), novelty > self.card.novelty)


def opinion(logits: Tensor, head: Head) -> Opinion:
    """The opinion that follows from the logits of the four scores.

    The score is -1 if that has at least half of the probability, else the most probable of the others.
    """
    probabilities = (logits / head.temperature).softmax(-1)
    broken = float(probabilities[0])
    score = -1.0 if broken >= 0.5 else SCORES[1 + int(probabilities[1:].argmax())]
    confidence = max(broken, 1 - broken)
    sure = head.confidence is not None and confidence >= head.confidence
    return Opinion(head.value, score, round(confidence, 4), sure, tuple(round(p, 4) for p in probabilities.tolist()))


def load_network(folder: Path, card: JudgeCard) -> Network:
    """The network of a judge's folder."""
    weights = load_file(folder / WEIGHTS)
    features, inputs = weights["projection"].shape
    network = Network(features, len(card.heads), inputs)
    network.load_state_dict(weights)
    return network


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a judge's folder except for its card, by its path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in (CARD, PAGE))
    return {file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest() for file in files}


def check_files(folder: Path, card: JudgeCard) -> None:
    """Compare a folder with its card.

    Raises:
        ValueError: a file is missing or differs.
    """
    there = file_hashes(folder)
    if changed := sorted(name for name, digest in card.files.items() if there.get(name) != digest):
        raise ValueError(f"{folder}: expected the files that its card names, got other or no {', '.join(changed)}.")
