"""Helpers of ``remember()``: run a trained model on batches without labels; the values whose gradients it uses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, is_floating_point, nn

from sal_lightning.padding import Padding

ROWS = 1024  # positions whose labels are drawn together, to save memory


def run(model: nn.Module, batch: Any) -> Any:
    """Run the model on a batch of a data loader, moved to the model's device."""
    device = next(model.parameters()).device

    def move(x: Any) -> Any:
        return x.to(device) if isinstance(x, Tensor) else x

    if isinstance(batch, Mapping):
        return model(**{name: move(x) for name, x in batch.items()})
    return model(move(batch[0] if isinstance(batch, list | tuple) else batch))


def importance_values(model: nn.Module, output: Any, padding: Padding | None = None, seed: int = 0) -> Tensor:
    """The values whose gradients' mean square is the importance of a weight, (n,).

    Of logits they are ``surprisals``, or ``independent_surprisals`` where the model's configuration says that a sample
    has several labels; of all other outputs ``energies``. Logits are the ``logits`` of a model of transformers that is
    not for regression, and an output (samples, positions, n) of a model that has an embedding of n tokens.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else output
    problem = problem_type(model)
    if isinstance(logits, Tensor) and is_floating_point(logits) and problem != "regression":
        if problem == "multi_label_classification" and logits.dim() == 2:
            return independent_surprisals(logits, seed)
        n = logits.shape[-1] if logits.dim() in (2, 3) else 0
        vocabularies = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
        if n > 1 and (isinstance(output, Mapping) or (logits.dim() == 3 and n in vocabularies)):
            return surprisals(logits, padding, seed)
    return energies(output, padding)


def problem_type(model: nn.Module) -> str | None:
    """The ``problem_type`` in the configuration of a model of transformers, or of one inside the model."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((kind for config in configs if (kind := getattr(config, "problem_type", None))), None)


def surprisals(logits: Tensor, padding: Padding | None = None, seed: int = 0) -> Tensor:
    """``-log p(y)`` at each real position, (positions,), where the label y is drawn from the predicted distribution p.

    The mean square of their gradients is the Fisher information (Amari 1998).

    Args:
        logits: (samples, classes) or (samples, positions, classes).
        padding: the masks that the model was called with.
        seed: random seed of the labels.
    """
    rows = logits.flatten(0, -2)
    if padding is not None and (real := padding.of_output(logits)) is not None:
        rows = rows[real.real] if real.real.any() else 0 * rows[:1]
    generator = torch.Generator(logits.device).manual_seed(seed)
    labels = torch.cat([drawn(part, generator) for part in torch.split(rows.detach(), ROWS)])
    return F.cross_entropy(rows.float(), labels, reduction="none")


def independent_surprisals(logits: Tensor, seed: int = 0) -> Tensor:
    """``-log p(y)`` of each sample, (samples,), where each of its labels y is drawn on its own: 1 with sigmoid(logit).

    Args:
        logits: (samples, labels).
        seed: random seed of the labels.
    """
    generator = torch.Generator(logits.device).manual_seed(seed)
    logits = logits.float()
    labels = torch.bernoulli(logits.detach().sigmoid(), generator=generator)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)


def drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A class for each row, drawn from the softmax of its logits: the maximum after Gumbel noise is added."""
    noise = torch.empty_like(logits, dtype=torch.float).exponential_(generator=generator)
    return (logits - noise.log_()).argmax(-1)


def energies(output: Any, padding: Padding | None = None) -> Tensor:
    """Half the squared norm of a model's output for each sample, (n,).

    The gradient of their mean is the importance of MAS (Aljundi et al. 2018). The output at padded positions is left
    out if the model was called with a mask.
    """
    if isinstance(output, Mapping):
        output = output.get("logits", tuple(output.values()))
    while isinstance(output, list | tuple):
        output = next(x for x in output if isinstance(x, list | tuple) or is_floating_point(x))
    squares = output.float().square()
    real = None if padding is None or output.dim() < 2 else padding.of_output(output)
    if real is not None:
        squares = squares * real.real.reshape(*output.shape[:-1], 1)
    each: Tensor = squares.flatten(1).sum(1) if squares.dim() > 1 else squares
    return each / 2


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which all modules are in evaluation mode; their modes are reset afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Context after which the parameters' gradients are the same as before."""
    grads = [p.grad for p in model.parameters()]
    try:
        yield
    finally:
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = grad
