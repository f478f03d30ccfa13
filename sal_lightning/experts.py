"""Experts whose weights are stacked in one parameter (experts, out, in) or (experts, in, out), as in transformers 5.

Each expert is a group; its rows are the tokens that the router assigned to it. The input of the down projection is the
output of the up projection and gate, recomputed for the sampled tokens only. This is supported for modules that follow
the experts interface of transformers. For other modules with a ``gate_up_proj`` of this shape only the input of that
weight is available, and their ``down_proj`` is protected by the element rule. Experts whose forward pass does not
receive the router's indices, as in Llama 4, are protected by the element rule entirely.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOST = 2048  # rows that are read, of all experts together


class Part(NamedTuple):
    """One weight of a module of experts."""

    name: str  # of the parameter
    bias: str | None
    transposed: bool  # stored as (experts, in, out)
    up: "Part | None" = None  # for a down projection: the up projection before it


def parts(module: nn.Module) -> list[Part]:
    """The supported weights of a module of experts; empty for other modules."""
    names = module._parameters
    up = next((name for name in ("gate_up_proj", "up_proj") if name in names), None)
    if up is None or not (_stacked(module, up) and _stacked(module, "down_proj")):
        return []
    contract = ("is_transposed", "has_bias", "has_gate", "num_experts")  # transformers' experts interface
    if all(hasattr(module, name) for name in contract):
        transposed: Any = module.is_transposed
        biases = (f"{up}_bias", "down_proj_bias") if module.has_bias else (None, None)
        first = Part(up, biases[0], bool(transposed))
        return [first, Part("down_proj", biases[1], bool(transposed), first)]
    # A gate doubles the outputs, so the two shapes match in one orientation only.
    gate_up, down = names[up], names["down_proj"]
    assert gate_up is not None
    assert down is not None
    plain, turned = gate_up.shape[1] == 2 * down.shape[2], gate_up.shape[2] == 2 * down.shape[1]
    fits = (plain and gate_up.shape[2] == down.shape[1]) or (turned and gate_up.shape[1] == down.shape[2])
    return [Part(up, None, turned)] if up == "gate_up_proj" and fits and f"{up}_bias" not in names else []


def _stacked(module: nn.Module, name: str) -> bool:
    weight = module._parameters.get(name)
    return weight is not None and weight.dim() == 3


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The tokens (tokens, d) and their expert indices (tokens, k) in a call; empty if there are none."""
    x, *others = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)] or [torch.zeros(())]
    index = next((a for a in others if not (a.is_floating_point() or a.is_complex() or a.dtype == torch.bool)), None)
    if index is None or not x.is_floating_point() or x.dim() < 2 or x.shape[:-1] != index.shape[:-1]:
        return ()
    return x.flatten(0, -2), index.flatten(0, -2)


def rows(part: Part, module: nn.Module, args: tuple[Any, ...], n: int, step: int, real: object = None) -> Tensor:
    """At most ``n`` rows (experts, n, d + 1) of this weight's input, each with a 1 appended.

    With many experts ``n`` is reduced so that at most MOST rows are read in total. Tokens of an expert that has fewer
    than ``n`` are repeated; the rows of an expert without tokens are all zero, including the appended column.
    """
    if part.up is not None:
        x = rows(part.up, module, args, n, step)
        return torch.cat([_activated(part.up, module, x[..., :-1]), x[..., -1:]], -1) * x[..., -1:]
    x, index = args[0].detach(), args[1].detach()
    weight = module._parameters[part.name]
    assert weight is not None
    token, used = _chosen(index, len(weight), n, step)
    return torch.cat([x[token], x.new_ones(*token.shape, 1)], -1) * used[:, None, None]


def _chosen(index: Tensor, experts: int, n: int, step: int) -> tuple[Tensor, Tensor]:
    """Indices (experts, n) of sampled tokens of each expert, and whether an expert has any (experts,)."""
    chosen = index.flatten().clamp(0, experts)  # experts of other processes have an index out of range
    order = chosen.argsort(stable=True)
    counts = torch.zeros(experts + 1, dtype=torch.long, device=index.device)
    counts = counts.scatter_add_(0, chosen.long(), torch.ones_like(chosen, dtype=torch.long))
    starts, counts = (counts.cumsum(0) - counts)[:experts, None], counts[:experts, None]
    n = min(n, len(chosen), max(MOST // experts, 1))
    # Evenly spread, as in `sample`: an odd stride, shifted by the step.
    stride = torch.where(counts > n, counts // n | 1, 1)
    place = (torch.arange(n, device=index.device) * stride + step * 7919) % counts.clamp(min=1)
    return order[(starts + place).clamp(max=len(order) - 1)] // index.shape[-1], counts[:, 0] > 0


def _activated(up: Part, module: Any, x: Tensor) -> Tensor:
    """The output of the up projection and the gate for rows (experts, n, d)."""
    weight = module._parameters[up.name].detach()
    y = x.to(weight.dtype) @ (weight if up.transposed else weight.mT)
    if up.bias is not None:
        y = y + module._parameters[up.bias].detach()[:, None]
    activated: Tensor = module._apply_gate(y) if module.has_gate else module.act_fn(y)
    return activated.to(x.dtype)
