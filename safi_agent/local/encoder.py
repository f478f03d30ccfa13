"""The encoder: the first layers of a transformer, read window by window and averaged over tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer
from typing_extensions import override

LAYERS = 3  # of the encoder that are kept
WINDOW = 128  # tokens of a window, with the special ones
BATCH = 16  # windows that are read together
SPREAD = 1.5  # largest ratio of their lengths, since shorter ones are padded


@contextmanager
def quiet_files() -> Iterator[None]:
    """Read or write a model without a progress bar and without the list of layers that are left out."""
    logger: Any = transformers.utils.logging
    level, bar = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(level)
        if bar:
            logger.enable_progress_bar()


def has_native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, which takes half the time of single precision."""
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(supported() for supported in known if supported is not None)


def alike(windows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Batches of at most 16 of these windows, which are sorted by length, such that little of a batch is padding.

    >>> [[len(window) for window in batch] for batch in alike([[0] * n for n in (4, 5, 6, 9)])]
    [[4, 5, 6], [9]]
    """
    batch: list[list[int]] = []
    for window in windows:
        if batch and (len(batch) == BATCH or len(window) > SPREAD * len(batch[0])):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


class Encoder(nn.Module):
    """Turns a text into one vector: the mean states of each layer over all tokens, side by side.

    Middle layers are kept since they tell more about how something is said than the last one, which was trained for
    topics. Each layer's mean is scaled to the same length.

    Args:
        net: an encoder of transformers, which is called with ``output_hidden_states=True``.
        tokenizer: its tokenizer, a fast one.
    """

    def __init__(self, net: Any, tokenizer: Any) -> None:
        super().__init__()
        self.net, self.tokenizer = net, tokenizer
        if getattr(net, "pooler", None) is not None:  # unused, and it would count as a trainable part
            net.pooler = None
        self.layers = int(net.config.num_hidden_layers)
        self.size = int(net.config.hidden_size)  #: of one layer
        self.window = min(WINDOW, int(getattr(net.config, "max_position_embeddings", WINDOW)))

    @classmethod
    def load(cls, folder: str | Path, layers: int | None = None) -> Self:
        """Load the first layers of an encoder from a folder.

        Args:
            folder: a model of transformers and its tokenizer, as ``save_pretrained`` writes them.
            layers: number of layers to keep; None keeps all.

        Raises:
            ValueError: the folder has no encoder with a fast tokenizer, or fewer layers than asked for.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"encoder: expected a folder with a model of transformers, got {str(folder)!r}.")
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            there = int(config.num_hidden_layers)
            if layers is not None and not 1 <= layers <= there:
                raise ValueError(f"layers: expected 1 to {there}, those of the encoder, got {layers}.")
            config.num_hidden_layers = layers or there
            with quiet_files():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                net = AutoModel.from_pretrained(folder, config=config, local_files_only=True, dtype=torch.float32)
        except OSError as error:
            raise ValueError(f"encoder: {folder} cannot be loaded: {error}") from None
        if not tokenizer.is_fast:
            raise ValueError(f"encoder: expected a fast tokenizer, got {type(tokenizer).__name__} in {folder}.")
        return cls(net.eval(), tokenizer)

    def save(self, folder: Path) -> None:
        """Write the layers that are kept, and the tokenizer."""
        with quiet_files():
            self.net.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def width(self) -> int:
        """Length of the vector of a text: layers × size."""
        return self.layers * self.size

    def for_inference(self) -> Self:
        """Use bfloat16 where the processor has it, in place; not for training."""
        self.net.eval().requires_grad_(False)
        if has_native_bfloat16():
            self.net.to(torch.bfloat16)
        return self

    def windows(self, texts: Sequence[str], most: int | None = None) -> list[tuple[int, list[int]]]:
        """The windows of all texts: the number of the text, and token ids; at most ``most`` per text, the first ones.

        An empty text has one window of special tokens.
        """
        read = self.tokenizer(
            list(texts), truncation=True, max_length=self.window, return_overflowing_tokens=True, stride=0
        )
        made: list[tuple[int, list[int]]] = []
        counts = [0] * len(texts)
        for text, ids in zip(read["overflow_to_sample_mapping"], read["input_ids"], strict=True):
            counts[text] += 1
            if most is None or counts[text] <= most:
                made.append((text, ids))
        return made

    @override
    def forward(self, texts: Sequence[str], most: int | None = None) -> Tensor:
        """The vectors of some texts, (n, width), with a gradient; all windows are read at once."""
        windows = self.windows(texts, most)
        return self._of_texts(len(texts), windows, self._read([ids for _, ids in windows]))

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """The vectors of any number of texts, (n, width), in single precision, in evaluation mode.

        Windows of similar length are read together.
        """
        if not texts:
            return torch.zeros(0, self.width)
        self.net.eval()
        windows = sorted(self.windows(texts), key=lambda window: len(window[1]))
        parts = [self._read(batch) for batch in alike([ids for _, ids in windows])]
        return self._of_texts(len(texts), windows, torch.cat(parts))

    def _read(self, windows: list[list[int]]) -> Tensor:
        """The mean states of each window, (n, layers, size)."""
        device = next(self.net.parameters()).device
        longest = max(map(len, windows))
        filler = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*window, *[filler] * (longest - len(window))] for window in windows], device=device)
        lengths = torch.tensor([len(window) for window in windows], device=device)
        mask = torch.arange(longest, device=device)[None] < lengths[:, None]
        states = self.net(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[1:]
        stacked = torch.stack(states, 1).float()  # (n, layers, tokens, size)
        means: Tensor = (stacked * mask[:, None, :, None]).sum(2) / lengths[:, None, None]
        return means

    def _of_texts(self, count: int, windows: Sequence[tuple[int, list[int]]], means: Tensor) -> Tensor:
        """Average windows over texts by their numbers of tokens; each layer is scaled to length √size."""
        text = torch.tensor([text for text, _ in windows], device=means.device)
        tokens = torch.tensor([len(ids) for _, ids in windows], device=means.device, dtype=means.dtype)
        sums = means.new_zeros(count, *means.shape[1:]).index_add(0, text, means * tokens[:, None, None])
        scaled: Tensor = F.normalize(sums, dim=-1) * self.size**0.5
        return scaled.flatten(1)
