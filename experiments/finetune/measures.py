"""What is measured before and after: losses, the divergence from the model before, and questions answered."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from experiments.finetune.model import token_losses
from experiments.finetune.questions import QUESTIONS
from experiments.finetune.texts import answered
from sal_lightning.remembering import evaluating

ROWS = 4  # evaluated together
ANSWER = 24  # tokens of an answer at most
Measures = dict[str, float]


class Measured(NamedTuple):
    """The texts to measure a model on.

    Args:
        texts: rows (n, length) by the name of the text.
        own: samples of the model before, as batches with a mask.
        before: logarithms of the probabilities that it gave to the tokens after each of the samples' tokens.
        tokenizer: of the model.
    """

    texts: Mapping[str, Tensor]
    own: list[dict[str, Tensor]]
    before: list[Tensor]
    tokenizer: PreTrainedTokenizerBase


def device_of(net: nn.Module) -> torch.device:
    """Where its weights are."""
    return next(net.parameters()).device


@torch.no_grad()
def log_probabilities(net: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Of each next token of the vocabulary, where the next token is not padding: (tokens, vocabulary)."""
    given = {name: x.to(device_of(net)) for name, x in batch.items()}
    logits = net(**given).logits[:, :-1]
    there: Tensor = logits[given["attention_mask"][:, 1:].bool()]
    return there.log_softmax(-1)


def next_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """The tokens that ``log_probabilities`` refers to, (tokens,)."""
    return batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:].bool()]


@torch.no_grad()
def measure(net: nn.Module, on: Measured) -> Measures:
    """All measures of a model.

    Returns:
        By name: the loss in nats a token on each text and on its own samples (``own``); the divergence
        KL(before ‖ now) on these, in nats a token (``kl``); the number of questions answered (``facts``).
    """
    with evaluating(net):
        losses = {name: loss(net, text) for name, text in on.texts.items()}
        own, kl, n = 0.0, 0.0, 0
        for batch, before in zip(on.own, on.before, strict=True):
            now, wanted = log_probabilities(net, batch), next_tokens(batch).to(before.device)
            own -= now.gather(1, wanted[:, None]).sum().item()
            kl += (before.exp() * (before - now)).sum().item()
            n += len(wanted)
        return losses | {"own": own / n, "kl": kl / n, "facts": float(facts(net, on.tokenizer))}


def loss(net: nn.Module, rows: Tensor) -> float:
    """Mean loss of a text, in nats a token."""
    parts = [token_losses(net, part) for part in torch.split(rows.to(device_of(net)), ROWS)]
    return torch.cat(parts).mean().item()


@torch.no_grad()
def answers(net: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> list[str]:
    """The most probable answers to questions, token by token."""
    tokenizer.padding_side = "left"
    asked = tokenizer(
        [answered(tokenizer, q) for q in questions], return_tensors="pt", padding=True, add_special_tokens=False
    )
    said = net.generate(**asked.to(device_of(net)), do_sample=False, max_new_tokens=ANSWER)  # type: ignore[operator]
    return list(tokenizer.batch_decode(said[:, asked["input_ids"].shape[1] :], skip_special_tokens=True))


def facts(net: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of questions whose answer contains a right word, in upper or lower case."""
    said = answers(net, tokenizer, [q.question for q in QUESTIONS])
    return sum(any(w.lower() in a.lower() for w in q.words) for q, a in zip(QUESTIONS, said, strict=True))
