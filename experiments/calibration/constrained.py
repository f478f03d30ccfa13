"""Constrained output of a language model: the probability of each of a few allowed continuations of a prompt."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Tokens = tuple[int, ...]


class ConstrainedModel:
    """A causal language model of transformers, with the key-value cache of each system message kept.

    Args:
        folder: the model's folder.

    Attributes:
        seconds: CPU seconds of all calls, without the system messages, which are computed once.
        calls: number of calls of ``probabilities``.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()  # type: ignore[no-untyped-call]
        self.seconds, self.calls = 0.0, 0
        self._caches: dict[str, tuple[Any, int]] = {}

    def probabilities(self, system: str, user: str, start: str, options: Sequence[str]) -> list[float]:
        """Probabilities of the options as continuations of ``start``, with which the reply begins; they sum to 1.

        Where options begin with different tokens, one forward pass decides; a further token is read only for options
        that share their beginning.
        """
        cache, kept = self._system(system)
        begin = time.thread_time()
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + start
        tokens = self._encode(text[len(self._system_text(system)) :])
        try:
            with torch.inference_mode():
                found = self._walk(cache, tokens, {self._encode(option): i for i, option in enumerate(options)})
        finally:
            _crop(cache, kept)
            self.seconds += time.thread_time() - begin
            self.calls += 1
        return [found[i] for i in range(len(options))]

    def _walk(self, cache: Any, tokens: Tokens, options: dict[Tokens, int]) -> dict[int, float]:
        """The probability of each option, given that one of them follows the tokens."""
        if len(options) == 1:
            return {next(iter(options.values())): 1.0}
        branches: dict[int, dict[Tokens, int]] = defaultdict(dict)
        for option, i in options.items():
            branches[option[0]][option[1:]] = i
        length = cache.get_seq_length()
        scores = self._forward(cache, tokens)[list(branches)].softmax(0)
        after = cache.get_seq_length()
        found: dict[int, float] = {}
        for (token, rest), share in zip(branches.items(), scores.tolist(), strict=True):
            found |= {i: share * p for i, p in self._walk(cache, (token,), rest).items()}
            _crop(cache, after)
        _crop(cache, length)
        return found

    def _forward(self, cache: Any, tokens: Tokens) -> Tensor:
        """The logits after the tokens, which are added to the cache."""
        output = self.model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[0, -1]
        return logits

    def _system_text(self, system: str) -> str:
        text: str = self.tokenizer.apply_chat_template([{"role": "system", "content": system}], tokenize=False)
        return text

    def _system(self, system: str) -> tuple[Any, int]:
        """The cache of the system message, and its length in tokens."""
        if system not in self._caches:
            from transformers import DynamicCache

            cache: Any = DynamicCache()
            with torch.inference_mode():
                self._forward(cache, self._encode(self._system_text(system)))
            self._caches[system] = cache, cache.get_seq_length()
        return self._caches[system]

    def _encode(self, text: str) -> Tokens:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def _crop(cache: Any, length: int) -> None:
    """Remove what follows the first ``length`` tokens; a negative argument counts tokens to remove."""
    if surplus := cache.get_seq_length() - length:
        cache.crop(-surplus)
