"""Small judges: a tiny random encoder, and answers that are broken where they have the word."""

import random
from collections.abc import Sequence
from pathlib import Path

from safi_agent.calibration.labels import Case
from safi_agent.local.examples import Example
from safi_agent.local.module import Settings
from tests.safi_agent.fakes import THREE

FAST = Settings(layers=2, epochs=25, patience=4)
GOOD, BAD = "hello there my friend", "zzzz qqq zzz zz"
VALUES = THREE


def case(number: int, broken: bool, about: str = "opening hours") -> Case:
    return Case(f"What are the {about} on day {number}?", "", f"{BAD if broken else GOOD} {number}")


def examples(
    values: Sequence[str] = ("truth", "care"), count: int = 40, about: str = "opening hours", seed: int = 0
) -> list[Example]:
    """Two answers to each prompt, one of them broken."""
    numbers = random.Random(seed).sample(range(1000), count)
    return [
        Example(case(number, broken, about), value, -1.0 if broken else 1.0)
        for number in numbers
        for broken in (False, True)
        for value in values
    ]


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
