"""The two domains as bytes: Shakespeare from a file, and source code of Python's standard library."""

import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from experiments.continual import data
from experiments.language.settings import FIRST

SHARED, OWN = data.SHARED.parent, data.OWN.parent
SHAKESPEARE, MD5 = "tinyshakespeare.txt", "6fb458f1232090904fb40fe944165e91"
SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
HELD_OUT = 0.05  # share of a text for validation, and again for testing
# Single files in Python 3.11 to 3.14; their content differs slightly between versions.
MODULES = (
    *("argparse", "ast", "calendar", "codecs", "configparser", "contextlib", "csv", "dataclasses", "difflib", "enum"),
    *("fractions", "functools", "heapq", "inspect", "ipaddress", "optparse", "pickle", "platform", "shutil"),
    *("statistics", "subprocess", "tarfile", "tempfile", "textwrap", "threading"),
)


class Domain(NamedTuple):
    """A text in three consecutive parts, as bytes."""

    name: str
    md5: str
    train: Tensor
    validation: Tensor
    test: Tensor


def split(name: str, text: bytes) -> Domain:
    """Split a text into three parts.

    >>> [len(part) for part in split("zeros", bytes(100))[2:]]
    [90, 5, 5]
    """
    held_out = int(HELD_OUT * len(text))
    content, ends = (
        torch.frombuffer(bytearray(text), dtype=torch.uint8),
        (len(text) - 2 * held_out, len(text) - held_out),
    )
    return Domain(name, data.md5(text), *torch.tensor_split(content, ends))


def name_of(source: Path | None = None) -> str:
    """The name of the text that ``shakespeare`` reads, without reading it."""
    return source.stem if source is not None and source.is_file() else FIRST


def shakespeare(source: Path | None = None) -> Domain:
    """Read Shakespeare from a folder with the file, or another text file."""
    if source is not None and source.is_file():
        return split(name_of(source), source.read_bytes())
    folder = source or (SHARED if (SHARED / SHAKESPEARE).is_file() else OWN)
    try:
        return split(FIRST, data.read_file(folder, SHAKESPEARE, MD5))
    except data.DataError as error:
        error.add_note(f"It is available from {SOURCE}.")
        raise


def library(folder: Path | None = None) -> Domain:
    """The concatenated source code of the chosen modules."""
    folder = folder or Path(sysconfig.get_path("stdlib"))
    return split("Python", b"".join((folder / f"{name}.py").read_bytes() for name in MODULES))


def windows(text: Tensor, context: int) -> Tensor:
    """A whole text in rows that each predict ``context`` bytes, without overlap; an incomplete last row is dropped.

    >>> windows(torch.arange(8), 3)
    tensor([[0, 1, 2, 3],
            [3, 4, 5, 6]])
    """
    return text.unfold(0, context + 1, context).long()


class Batches(Dataset[Tensor]):
    """Item ``i`` is a batch (batch, context + 1) from random positions, identical for every method."""

    def __init__(self, text: Tensor, context: int, batch: int, steps: int, seed: int) -> None:
        self.rows = text.unfold(0, context + 1, 1)
        generator = torch.Generator().manual_seed(seed)
        self.places = torch.randint(len(self.rows), (steps, batch), generator=generator)

    def __len__(self) -> int:
        return len(self.places)

    @override
    def __getitem__(self, step: int) -> Tensor:
        return self.rows[self.places[step]].long()
