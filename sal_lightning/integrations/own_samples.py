"""Texts that a language model generates itself, for ``remember()`` where its training data are not available."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sal_lightning.integrations.weights_mark import weights_mark
from sal_lightning.remembering import evaluating

try:
    from transformers import GenerationConfig, PreTrainedModel
except ImportError as error:
    raise ImportError(f'Expected transformers: pip install "sal-lightning[huggingface]" ({error}).') from error

Batch = dict[str, Tensor]
FORMAT = 1  # of the file
STREAM = 1_000_003  # factor between the random seeds of two runs


@torch.no_grad()
def own_samples(
    model: PreTrainedModel,
    n: int = 256,
    length: int = 128,
    *,
    batch_size: int = 16,
    temperature: float = 1.0,
    start: int | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    progress: bool = True,
) -> list[Batch]:
    """Sample texts from a causal language model, as batches for ``remember()``.

    Example::

        callback.remember(model, own_samples(model))

    Each text begins with the ``start`` token and ends at the model's end token or at ``length``. Tokens are drawn from
    the model's distribution, without the cut-offs and penalties of its generation config. The model's mode, its
    generation config and the global random state are the same afterwards.

    Args:
        model: a causal language model of transformers.
        n: number of texts, >= 1.
        length: largest number of tokens of a text, with the first one; from 2 to the model's number of positions.
        batch_size: texts that are generated together, >= 1.
        temperature: > 0; 1 is the model's own distribution.
        start: the first token; default: the model's beginning token, or its end token if it has none.
        seed: random seed; batch i depends on ``seed`` and i only.
        file: where to save the texts as they are generated, as JSON Lines: the arguments, then a batch in each line. A
            call with the same arguments and weights continues.
        progress: whether to show a progress bar.

    Returns:
        Batches with ``input_ids`` and ``attention_mask``, (batch_size, at most length); the mask is 0 after the end
        token.

    Raises:
        ValueError: an argument is outside its range, the model has no token to begin with or is an encoder-decoder
            model, or ``file`` is not one of this function's or is of other arguments or weights.
    """
    _check(n=n, length=length, batch_size=batch_size)
    if not temperature > 0:
        raise ValueError(f"Expected temperature to be > 0, got {temperature}.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"Expected model to be a causal language model, got {type(model).__name__}, with an encoder.")
    _check_positions(model, length)
    begin, ends = _special_tokens(model, start)
    settings = {
        "n": n,
        "length": length,
        "batch_size": batch_size,
        "temperature": temperature,
        "start": begin,
        "seed": seed,
    }
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_length=length,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else begin,
    )
    header = {"own_samples": FORMAT, "settings": settings, "weights": weights_mark(model.parameters()).tolist()}
    batches = [] if file is None else _resume(Path(file), header)
    todo = range(len(batches), -(-n // batch_size))
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        evaluating(model),
        _generating(model, config),
        torch.random.fork_rng(devices),
        tqdm(total=n, unit="text", disable=not progress) as bar,
    ):
        bar.update(min(n, len(batches) * batch_size))
        for i in todo:
            torch.manual_seed(STREAM * seed + i)
            first = torch.full((min(batch_size, n - i * batch_size), 1), begin, device=model.device)
            texts: Tensor = model.generate(first, attention_mask=torch.ones_like(first))  # type: ignore[operator]
            batches.append({"input_ids": texts.cpu(), "attention_mask": _until_end(texts, ends).cpu()})
            if file is not None:
                _append(Path(file), {name: rows.tolist() for name, rows in batches[-1].items()})
            bar.update(len(first))
    return batches


@contextmanager
def _generating(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Context with this generation config in place of the model's, which would fill in what an argument leaves out."""
    modules: Iterator[Any] = model.modules()  # the model of transformers may be inside one of peft
    own = {module: module.generation_config for module in modules if "generation_config" in vars(module)}
    for module in own:
        module.generation_config = config
    try:
        yield
    finally:
        for module, before in own.items():
            module.generation_config = before


def _check(**numbers: int) -> None:
    for (name, number), least in zip(numbers.items(), (1, 2, 1), strict=True):
        if number < least:
            raise ValueError(f"Expected {name} to be >= {least}, got {number}.")


def _check_positions(model: PreTrainedModel, length: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(f"Expected length to be at most the {positions} positions of the model, got {length}.")


def _special_tokens(model: PreTrainedModel, start: int | None) -> tuple[int, list[int]]:
    """The first token of a text, and those that end it."""
    known = model.generation_config or GenerationConfig.from_model_config(model.config)
    end = known.eos_token_id
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    begin = next((token for token in (start, known.bos_token_id, *ends) if token is not None), None)
    if begin is None:
        raise ValueError("Expected start to be a token, since the model has no beginning or end token, got None.")
    return begin, ends


def _until_end(texts: Tensor, ends: list[int]) -> Tensor:
    """1 for tokens up to the first end token after the first token, 0 for those after it."""
    ended = torch.isin(texts, texts.new_tensor(ends)) if ends else torch.zeros_like(texts, dtype=torch.bool)
    ended[:, 0] = False  # a model without a beginning token begins with its end token
    return (ended.cumsum(1) - ended.long() == 0).long()


# --- the file ---


def _resume(file: Path, header: Mapping[str, Any]) -> list[Batch]:
    """The batches in the file, without a last line that was not written whole; starts the file if there is none."""
    if not file.exists() or not file.stat().st_size:
        part = file.with_name(f"{file.name}.part")
        part.unlink(missing_ok=True)
        _append(part, header)
        os.replace(part, file)
        return []
    whole, newline, _ = file.read_bytes().rpartition(b"\n")
    lines = whole.splitlines()
    try:
        kept, *rows = map(json.loads, lines)
        known = kept["own_samples"] == FORMAT and kept["settings"].keys() == header["settings"].keys()
        batches = [{name: torch.tensor(row[name]) for name in ("input_ids", "attention_mask")} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(f"Expected file to be new or written by own_samples, got another file: {str(file)!r}.")
    if other := {name: value for name, value in header["settings"].items() if kept["settings"][name] != value}:
        found = {name: kept["settings"][name] for name in other}
        raise ValueError(f"Expected file to be of {other}, got one of {found}: {str(file)!r}.")
    if kept["weights"] != header["weights"]:
        raise ValueError(f"Expected file to be of this model's weights, got one of other weights: {str(file)!r}.")
    os.truncate(file, len(whole + newline))
    return batches


def _append(file: Path, line: Mapping[str, Any]) -> None:
    """Append one line, written to the disk when this returns."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
        out.flush()
        os.fsync(out.fileno())
