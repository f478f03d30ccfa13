"""Methods to retain the first domain while learning the second, each with one strength."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from experiments.continual.baselines.base import Baseline
from experiments.language.model import LAYERS, LanguageModel, next_byte
from sal_lightning import SALCallback

if TYPE_CHECKING:
    from peft import LoraConfig

RANK = 8  # rank of the adapters that SAL protects
SCALING = 2  # scaling factor of adapters, independent of their rank


class Start(NamedTuple):
    """State at the start of the second stage."""

    model: LanguageModel
    examples: Iterable[Tensor]  # batches of the first domain, for methods that use them
    watched: dict[str, Any]  # state of the SALCallback of the first stage


Prepare = Callable[[Start, float], Callback | None]


class Pull(Baseline):
    """``G ← G + λ F (W − W*)``: the penalty ``λ/2 Σ F (W − W*)²``, with W* the weights at the start of training."""

    def __init__(self, F: list[Tensor], strength: float) -> None:
        self.F = [strength * f for f in F]

    @override
    def begin(self) -> None:
        self.F = [f.to(self.model.device) for f in self.F]
        self.anchor = [w.detach().clone() for w in self.W]  # W*

    @override
    def before_step(self) -> None:
        for g, f, w, anchor in zip(self.G, self.F, self.W, self.anchor, strict=True):
            g.addcmul_(f, w - anchor)


def fisher(losses: Iterable[Tensor], W: Sequence[Tensor]) -> list[Tensor]:
    """Mean squared gradient of the losses of single texts, scaled to mean 1 so that λ is comparable between models."""
    F = [torch.zeros_like(w) for w in W]
    for loss in losses:
        for f, g in zip(F, torch.autograd.grad(loss, W), strict=True):
            f.addcmul_(g, g)
    mean = sum(f.sum() for f in F) / sum(f.numel() for f in F)
    return [f / mean for f in F]


def adapters(rank: float, modules: Sequence[str], **options: Any) -> "LoraConfig":
    """The configuration of low-rank adapters (Hu et al. 2022) on the modules of these names."""
    from peft import LoraConfig

    options.setdefault("lora_alpha", SCALING * int(rank))
    return LoraConfig(r=int(rank), target_modules=list(modules), **options)


def plain(start: Start, strength: float) -> None:
    """AdamW alone; its strength is the learning rate."""


def l2(start: Start, strength: float) -> Callback:
    """The same pull on all weights."""
    return Pull([torch.ones_like(w) for w in start.model.learning()], strength)


def ewc(start: Start, strength: float) -> Callback:
    """Elastic weight consolidation (Kirkpatrick et al. 2017), with the labels of the text."""
    losses = (next_byte(start.model, row[None]) for batch in start.examples for row in batch)
    return Pull(fisher(losses, list(start.model.learning())), strength)


def lora(start: Start, strength: float) -> None:
    """Low-rank adapters on all layers of the blocks; the strength is their rank."""
    from peft import get_peft_model

    start.model.net = get_peft_model(start.model.net, adapters(strength, LAYERS))


def sal(start: Start, strength: float) -> SALCallback:
    """SAL in all stages, without information on the change of domain."""
    callback = SALCallback(strength=strength)
    callback.load_state_dict(start.watched)
    return callback


def sal_remember(start: Start, strength: float) -> SALCallback:
    """SAL from the second stage on, after ``remember`` on examples of the first domain."""
    callback = SALCallback(strength=strength)
    callback.remember(start.model, (batch[:, :-1] for batch in start.examples))
    return callback


def sal_lora(start: Start, strength: float) -> SALCallback:
    """The same on adapters of rank 8."""
    lora(start, RANK)
    return sal_remember(start, strength)


class Method(NamedTuple):
    """A function that prepares the second stage, and the strengths of a curve."""

    prepare: Prepare
    strengths: tuple[float, ...]
    watches: bool = False  # whether it takes part in the first stage


PULLS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
HOLDS = (0.3, 1.0, 3.0, 10.0, 30.0)
METHODS = {
    "plain": Method(plain, (1e-3, 5e-4, 2e-4, 1e-4, 5e-5)),
    "l2": Method(l2, PULLS),
    "ewc": Method(ewc, PULLS),
    "lora": Method(lora, (1, 2, 4, 8, 16, 32)),
    "sal": Method(sal, HOLDS, watches=True),
    "sal-remember": Method(sal_remember, HOLDS),
    "sal-lora": Method(sal_lora, HOLDS),
}
