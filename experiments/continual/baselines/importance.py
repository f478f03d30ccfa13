"""Importance of weights for a network's outputs: moments of the gradients of single samples."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

CHUNK = 1000


def moments(net: nn.Module, x: Tensor, scores: Callable[[Tensor], Iterator[Tensor]], power: int) -> list[Tensor]:
    """``mean over n of Σ_s |∂ s_n / ∂ w|^power`` for every weight of a network of linear layers, in their order.

    For a linear layer, the gradient of one sample is the outer product δ xᵀ, and so are its elementwise powers, so that
    per-sample gradients are never materialized.

    Args:
        net: a network whose parameters all belong to ``nn.Linear``.
        x: inputs (n, d).
        scores: maps the outputs (n, out) of a chunk to one or several scores (n,).
        power: 1 or 2.
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    total: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in net.parameters()}
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        inputs[layer], outputs[layer] = args[0].detach(), y

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.enable_grad():
            for chunk in torch.split(x, CHUNK):
                for score in scores(net(chunk)):
                    deltas = torch.autograd.grad(score.sum(), [outputs[m] for m in layers], retain_graph=True)
                    for layer, delta in zip(layers, deltas, strict=True):
                        d = delta.abs() ** power
                        total[layer.weight] += d.T @ inputs[layer].abs() ** power
                        if layer.bias is not None:
                            total[layer.bias] += d.sum(0)
    finally:
        for handle in handles:
            handle.remove()
    return [t / len(x) for t in total.values()]
