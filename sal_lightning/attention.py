"""Inputs of the output projection of ``nn.MultiheadAttention``, recomputed for a sample of positions.

No hook receives these inputs, since the module calls the projection as a function. Attention is therefore recomputed
without gradients, for a few positions of a few sampled sequences.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sal_lightning.distributed import sharded
from sal_lightning.padding import Real
from sal_lightning.sampling import sample

FEW = 8  # sequences that are recomputed; more where they are too short to yield enough rows
_ARGUMENTS = (  # in the order of the forward pass's positional parameters
    "query",
    "key",
    "value",
    "key_padding_mask",
    "need_weights",
    "attn_mask",
    "average_attn_weights",
    "is_causal",
)


class Call(NamedTuple):
    """One call of an attention module, with the arguments of its forward pass."""

    module: nn.MultiheadAttention
    query: Any
    key: Any
    value: Any
    key_padding_mask: Tensor | None = None
    attn_mask: Tensor | None = None
    causal: bool = False  # whether the hint is_causal replaces the mask


def called(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Returns the call with these arguments; a missing query, key or value is None."""
    given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    padding, mask = given.get("key_padding_mask"), given.get("attn_mask")
    # As in torch.nn.functional.multi_head_attention_forward.
    causal = bool(given.get("is_causal")) and padding is None and not given.get("need_weights", True)
    q, k, v = (given.get(name) for name in _ARGUMENTS[:3])
    return Call(module, q, k, v, padding, None if causal else mask, causal)


def can_run_again(module: nn.MultiheadAttention) -> bool:
    """Whether its weights are parameters of its own (not parametrized) and are not sharded."""
    own = module._parameters
    packed, several = own.get("in_proj_weight"), [own.get(f"{x}_proj_weight") for x in "qkv"]
    plain = "in_proj_bias" in own and (packed is not None or all(W is not None for W in several))
    plain = plain and module.out_proj._parameters.get("weight") is not None
    return plain and not any(map(sharded, module.parameters()))


@torch.no_grad()
def rows(call: Call, n: int, step: int, real: Real | None) -> Tensor:
    """At most ``n`` sampled rows (n, embed_dim) that the output projection multiplies in this call.

    They are at least in single precision. Dropout is not applied, since the mask of the original call is not available;
    the mean of the rows is the same.

    Args:
        call: the call whose arguments are used.
        n: number of rows; they are taken from at least ``FEW`` sequences, if there are as many.
        step: shifts which sequences and positions are chosen.
        real: positions of the query that are not padding; None if all are real.
    """
    q = _sequences(call, call.query)
    batch, length = q.shape[:2]
    count = min(batch, max(FEW, math.ceil(n / length)))
    if real is None:
        some = torch.arange(batch, device=q.device)[sample(batch, count, step, q.device)]
        there = torch.ones(count, length, dtype=torch.bool, device=q.device)
    else:
        whole = _sequences(call, real.real.view(call.query.shape[:-1])[..., None])[..., 0]
        # Weighted by real positions: each chosen sequence yields the same number of rows, so longer ones must be chosen
        # more often.
        some = Real(whole.flatten()).sample(count, step) // length
        there = whole[some]
    x = _attend(call, some, _positions(there, min(length, math.ceil(n / count)), step)).flatten(0, 1)
    x = x[sample(len(x), n, step, x.device)]
    return x if real is None else x.where(real.real.any(), torch.nan)


def _sequences(call: Call, x: Tensor) -> Tensor:
    """Returns ``x`` as (batch, time, features)."""
    x = x.detach()
    if x.dim() == 2:
        return x[None]
    return x if call.module.batch_first else x.transpose(0, 1)


def _positions(there: Tensor, n: int, step: int) -> Tensor:
    """``n`` evenly spread positions (sequences, n) among those that are ``there`` (sequences, time).

    They differ between sequences and steps, and repeat where a sequence has fewer than ``n``.

    >>> _positions(torch.tensor([[True, True, False, True]]), 3, step=0)
    tensor([[0, 1, 3]])
    """
    ends = there.cumsum(1)
    count = ends[:, -1:].clamp(min=1)
    first = (step + torch.arange(len(there), device=there.device)[:, None]) * 7919
    at = (torch.arange(n, device=there.device) * count // n + first) % count
    return torch.searchsorted(ends, at + 1).clamp(max=there.shape[1] - 1)


def _attend(call: Call, some: Tensor, at: Tensor) -> Tensor:
    """The concatenated outputs of all heads, (sequences, positions, embed_dim).

    Args:
        call: the call whose arguments are used.
        some: (sequences,) indices of the sequences to run.
        at: (sequences, positions) indices of their queries.
    """
    module, packed = call.module, call.module.in_proj_weight
    dtype = torch.promote_types(module.out_proj.weight.dtype, torch.float32)
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if packed is None else packed.chunk(3)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.to(dtype).chunk(3)
    query, key, value = (_sequences(call, x) for x in (call.query, call.key, call.value))
    inputs = query[some[:, None], at], key[some], value[some]
    q, k, v = (
        F.linear(x.to(dtype), weight.to(dtype), bias) for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    if module.bias_k is not None and module.bias_v is not None:
        k, v = (
            torch.cat([x, b.to(dtype).expand(len(x), -1, -1)], 1) for x, b in ((k, module.bias_k), (v, module.bias_v))
        )
    if module.add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    mask = _mask(call, some, at, k.shape[1], dtype)
    q, k, v = (x.view(*x.shape[:2], module.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _mask(call: Call, some: Tensor, at: Tensor, keys: int, dtype: torch.dtype) -> Tensor | None:
    """The additive attention mask of these queries: (sequences, heads or 1, positions or 1, keys)."""
    parts = list[Tensor]()
    if call.causal:
        parts.append(_additive(torch.arange(keys, device=at.device) > at[:, None, :, None], dtype))
    if call.attn_mask is not None and call.attn_mask.dim() == 2:
        parts.append(_additive(call.attn_mask[at][:, None], dtype))
    elif call.attn_mask is not None:
        each = call.attn_mask.view(-1, call.module.num_heads, *call.attn_mask.shape[1:])
        parts.append(_additive(each[some[:, None], :, at].transpose(1, 2), dtype))
    if call.key_padding_mask is not None:
        padding = call.key_padding_mask
        parts.append(_additive(padding.view(-1, padding.shape[-1])[some][:, None, None], dtype))
    # Keys that the module itself appends (bias_k, add_zero_attn) are never masked.
    parts = [F.pad(part, (0, keys - part.shape[-1])) for part in parts]
    return sum(parts[1:], parts[0]) if parts else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts a mask to an additive one: −inf where a boolean mask is True."""
    mask = mask.detach()
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -torch.inf)
