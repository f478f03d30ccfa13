"""Checks whether a module with a custom forward pass is still linear in its weight, or an embedding lookup."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from sal_lightning.distributed import sharded

_KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# A custom forward pass of these is not tested: they count as not linear.
_UNTESTED = (nn.MultiheadAttention, nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
_ROWS = 8  # rows of the table in the embedding test
_ALIKE = 0.999  # cosine similarity of two outputs that differ by rounding or a factor


def is_linear(module: nn.Module) -> bool:
    """Whether the weight acts on the module's input as in the torch class that it inherits from.

    This holds if the forward pass is inherited. A custom one is tested on a copy in evaluation mode: a change ``Δ`` of
    the weight of a Linear or convolution has to change the output by a multiple of ``Δ x``; a change of one row of an
    Embedding has to change the output at the positions of its token only.
    """
    kind = next((kind for kind in (*_UNTESTED, *_KINDS, nn.Embedding) if isinstance(module, kind)), None)
    if kind is None or _inherited(module, kind):
        return True
    weight = module._parameters.get("weight")
    if kind in _UNTESTED or weight is None or sharded(weight):
        return False
    devices = [weight.device] if weight.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            if isinstance(module, nn.Embedding):
                return _is_lookup(module)
            return _acts_linearly(copy.deepcopy(module).eval().float(), kind)
    except Exception:  # a custom forward pass may raise anything on random inputs
        return False


def _inherited(module: nn.Module, kind: Any) -> bool:
    forward = inspect.unwrap(module.forward)  # libraries such as accelerate wrap it
    same = getattr(forward, "__func__", forward) is kind.forward
    return same and getattr(type(module), "_conv_forward", None) is getattr(kind, "_conv_forward", None)


def _acts_linearly(module: Any, kind: Any) -> bool:
    weight = module.weight
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(_input_size(module), generator=numbers).to(weight.device)
    scale = weight.square().mean().sqrt()
    delta = torch.randn(weight.shape, generator=numbers).to(weight.device) * torch.where(scale > 0, scale, 1.0)
    before = _output(module.forward(x))
    weight.add_(delta)
    found = _output(module.forward(x)) - before
    expected = F.linear(x, delta) if kind is nn.Linear else kind._conv_forward(module, x, delta, None)
    if found.shape != expected.shape:
        return False
    return bool(F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > _ALIKE)


def _is_lookup(module: nn.Embedding) -> bool:
    """Whether each token's output depends only on its own row; tested with a small table."""
    numbers = torch.Generator().manual_seed(0)
    table = torch.randn(_ROWS, module.embedding_dim, generator=numbers).to(module.weight.device)
    twin: Any = copy.deepcopy(module, {id(module.weight): nn.Parameter(table)}).eval()
    twin.num_embeddings, twin.padding_idx = _ROWS, None
    tokens = torch.tensor([[5, 1, 3, 1]], device=table.device)
    before = _output(twin.forward(tokens))
    twin.weight[1] += 1
    twin.weight[[0, 2, 4, 6, 7]] -= 1
    changed = (_output(twin.forward(tokens)) != before).flatten(2).any(-1)
    return bool(torch.equal(changed, tokens == 1))


def _input_size(module: Any) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return 3, module.in_features
    taps = zip(module.kernel_size, module.dilation, strict=True)
    return 1, module.in_channels, *((size - 1) * dilation + 4 for size, dilation in taps)


def _output(y: Any) -> Tensor:
    found: Tensor = next(x for x in tree_leaves(y) if isinstance(x, Tensor))
    return found.clone()
