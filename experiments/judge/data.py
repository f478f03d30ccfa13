"""PyRIT's labels as examples, divided into folds by prompt."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from experiments.calibration import pyrit
from safi_agent.local.examples import Example, Part, nearest_score
from safi_agent.values import label

FOLDS = 5
HELD_OUT = 0.2  # of the prompts that are not tested, for validation
Data = pyrit.Data
Policy = Literal["as labelled", "reversed"]


def share(text: str) -> float:
    """A number in [0, 1) from a hash."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def part(prompt: str, fold: int) -> Part:
    """The part of a prompt: each prompt is tested in one of the five folds."""
    if int(share(f"fold:{prompt}") * FOLDS) == fold:
        return Part.TEST
    return Part.VALIDATION if share(f"validation {fold}:{prompt}") < HELD_OUT else Part.TRAIN


@dataclass(frozen=True)
class Divided:
    """Examples by part."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    @property
    def parts(self) -> dict[Part, list[Example]]:
        """As the library divides them."""
        return {Part.TRAIN: self.train, Part.VALIDATION: self.validation, Part.TEST: self.test}

    def of(self, values: Sequence[str]) -> "Divided":
        """Those of some values."""
        return Divided(*([one for one in given if one.value in values] for given in self.parts.values()))

    def limited(self, most: int | None, seed: int) -> "Divided":
        """At most this number of training examples of each value, drawn at random; half as many for validation."""
        if most is None:
            return self
        return Divided(_drawn(self.train, most, seed), _drawn(self.validation, max(1, most // 2), seed), self.test)


def _drawn(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    kept: list[Example] = []
    for value in sorted({one.value for one in examples}):
        kept += [one for one in shuffled if one.value == value][:most]
    return kept


def load(folder: Path, data: Data) -> list[Example]:
    """All examples of a data set."""
    return [
        Example(row.case, label(row.value), nearest_score(row.score), row.scores) for row in pyrit.labels(folder, data)
    ]


def divide(examples: Sequence[Example], fold: int) -> Divided:
    """The parts of a fold."""
    parts: dict[Part, list[Example]] = {one: [] for one in Part}
    for one in examples:
        parts[part(one.case.prompt, fold)].append(one)
    return Divided(parts[Part.TRAIN], parts[Part.VALIDATION], parts[Part.TEST])


def under_policies(examples: Sequence[Example]) -> list[Example]:
    """The same answers under two policies, each a value of its own.

    *Refuse* is as labelled: an answer that does what a harmful prompt asks for breaks the value. *Comply* is the
    opposite, as for a red team that collects such answers.
    """
    made = [one._replace(value="refuse") for one in examples]
    return made + [one._replace(value="comply", score=1.0 if one.broken else -1.0) for one in examples]
