"""Methods to learn a new text and keep the rest, each with one strength."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor

from experiments.finetune.model import FineTuned, token_losses
from experiments.finetune.settings import LORA_LR, LR
from experiments.language.methods import Pull
from sal_lightning import SALCallback

MLP = ("gate_proj", "up_proj", "down_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)
SCALING = 2  # scaling factor of adapters, independent of their rank
RANK = 8  # of the adapters that SAL protects
Batch = dict[str, Tensor]


class Start(NamedTuple):
    """The state before training."""

    model: FineTuned
    samples: Sequence[Batch]  # texts of the model's own


Prepare = Callable[[Start, float], Callback | None]


def plain(start: Start, strength: float) -> None:
    """AdamW alone; its strength is the learning rate."""


def mixed(start: Start, strength: float) -> None:
    """The model's own samples in place of some rows of each batch; the strength is their share."""


def l2(start: Start, strength: float) -> Callback:
    """A pull of all weights to where they were (L2-SP, Li et al. 2018)."""
    return Pull([torch.ones_like(w) for w in start.model.learning()], strength)


def ewc(start: Start, strength: float) -> Callback:
    """Elastic weight consolidation (Kirkpatrick et al. 2017), on the model's own samples."""
    return Pull(fisher(start.model, start.samples), strength)


def fisher(model: FineTuned, samples: Iterable[Batch]) -> list[Tensor]:
    """Mean squared gradient of the loss of single samples, scaled to mean 1 so that λ is comparable between models.

    The samples were drawn from the model itself, so this is its Fisher information, not the empirical one.
    """
    W = list(model.learning())
    F = [torch.zeros_like(w) for w in W]
    for batch in samples:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            total = token_losses(model.net, ids[None, : int(mask.sum())].to(model.device)).sum()
            for f, g in zip(F, torch.autograd.grad(total, W), strict=True):
                f.addcmul_(g, g)
    mean = sum(f.sum() for f in F) / sum(f.numel() for f in F)
    return [f / mean for f in F]


def adapted(start: Start, rank: float, modules: Sequence[str]) -> None:
    """Add low-rank adapters (Hu et al. 2022)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=int(rank), lora_alpha=SCALING * int(rank), target_modules=list(modules))
    start.model.net = get_peft_model(start.model.net, config)


def lora(start: Start, strength: float) -> None:
    """Adapters on all layers; the strength is their rank."""
    adapted(start, strength, ALL)


def lora_mlp(start: Start, strength: float) -> None:
    """Adapters on the MLPs."""
    adapted(start, strength, MLP)


def sal(start: Start, strength: float) -> SALCallback:
    """SAL after ``remember`` on the model's own samples."""
    callback = SALCallback(strength=strength)
    callback.remember(start.model, start.samples)
    return callback


def sal_lora(start: Start, strength: float) -> SALCallback:
    """The same on adapters of all layers."""
    lora(start, RANK)
    return sal(start, strength)


class Method(NamedTuple):
    """A function that prepares training, its learning rate, and the strengths of a curve."""

    prepare: Prepare
    strengths: tuple[float, ...]
    lr: float = LR


PULLS = (0.01, 0.03, 0.1, 0.3)
RANKS = (4, 8, 32)
METHODS = {
    "plain": Method(plain, (2e-4, 1e-4, 5e-5, 2e-5)),
    "mixed": Method(mixed, (0.25, 0.5, 0.75)),
    "l2": Method(l2, PULLS),
    "ewc": Method(ewc, PULLS),
    "lora": Method(lora, RANKS, LORA_LR),
    "lora-mlp": Method(lora_mlp, RANKS, LORA_LR),
    "sal": Method(sal, (0.1, 0.3, 1, 4)),
    "sal-lora": Method(sal_lora, (0.1, 0.3, 1, 4), LORA_LR),
}
