"""Methods to learn a new text and keep the rest, each with one strength."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor

from experiments.finetune.model import FineTuned, token_losses
from experiments.finetune.settings import LORA_LR, LR
from experiments.language.methods import RANK, SCALING, Pull, adapters, fisher
from sal_lightning import SALCallback
from sal_lightning.remembering import evaluating

if TYPE_CHECKING:
    from peft import PeftConfig

MLP = ("gate_proj", "up_proj", "down_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)
Batch = dict[str, Tensor]


class Start(NamedTuple):
    """The state before training."""

    model: FineTuned
    samples: Sequence[Batch]  # texts of the model's own

    def texts(self) -> Iterator[Tensor]:
        """The samples one by one without padding, (1, length)."""
        for batch in self.samples:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                yield ids[None, mask.bool()].to(self.model.device)


Prepare = Callable[[Start, float], Callback | None]


def plain(start: Start, strength: float) -> None:
    """AdamW alone; its strength is the learning rate."""


def mixed(start: Start, strength: float) -> None:
    """The model's own samples in place of some rows of each batch; the strength is their share."""


def l2(start: Start, strength: float) -> Callback:
    """A pull of all weights to where they were (L2-SP, Li et al. 2018)."""
    return Pull([torch.ones_like(w) for w in start.model.learning()], strength)


def ewc(start: Start, strength: float) -> Callback:
    """Elastic weight consolidation (Kirkpatrick et al. 2017), with the Fisher information of the own samples."""
    losses = (token_losses(start.model.net, text).sum() for text in start.texts())
    return Pull(fisher(losses, list(start.model.learning())), strength)


def lora(start: Start, strength: float) -> None:
    """Low-rank adapters (Hu et al. 2022) on all layers; the strength is their rank."""
    adapt(start, adapters(strength, ALL))


def lora_mlp(start: Start, strength: float) -> None:
    """Adapters on the MLPs."""
    adapt(start, adapters(strength, MLP))


def rslora(start: Start, strength: float) -> None:
    """Adapters of a scale α/√rank (rsLoRA, Kalajdzievski 2023), with the same α for all ranks."""
    adapt(start, adapters(strength, ALL, use_rslora=True, lora_alpha=SCALING * RANK))


def corda(start: Start, strength: float) -> None:
    """Adapters made of the components of each weight that matter least for the model's own samples.

    This is the knowledge-preserved mode of CorDA (Yang et al. 2024). The rest of the weight is frozen; together they
    are the weight before.
    """
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    net = start.model.net
    config = adapters(strength, ALL, init_lora_weights="corda", corda_config=CordaConfig(corda_method="kpm"))

    def run() -> None:  # text by text, since peft collects inputs of one text at a time
        for text in start.texts():
            net(input_ids=text)

    with evaluating(net):
        preprocess_corda(net, config, run)
    adapt(start, config)


def osf(start: Start, strength: float) -> None:
    """Orthogonal subspace fine-tuning (Nayak et al. 2025): each weight's largest singular directions are frozen.

    The strength is their share. Gradients of the other directions are projected, as in peft; AdamW's steps are not.
    """
    from peft import OSFConfig

    adapt(start, OSFConfig(effective_rank=float(strength), target_modules=list(ALL)))


def adapt(start: Start, config: "PeftConfig") -> None:
    """Add adapters to the model, whose own weights are frozen."""
    from peft import get_peft_model

    start.model.net = get_peft_model(start.model.net, config)


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
    "rslora": Method(rslora, (8, 32, 128), LORA_LR),
    "corda": Method(corda, RANKS, LORA_LR),
    "osf": Method(osf, (0.5, 0.75, 0.9)),
    "sal": Method(sal, (0.1, 0.3, 1, 4)),
    "sal-lora": Method(sal_lora, (0.1, 0.3, 1, 4), LORA_LR),
}
