"""Distributed training: collectives over processes, and the local rows of sharded parameters.

A parameter is whole in every process (one device, DDP), or a `DTensor` sharded by rows, dim 0 (FSDP2). In both cases
`x S` acts on each row separately, so nothing has to be gathered during training.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, distributed
from typing_extensions import TypeIs

if distributed.is_available():
    from torch.distributed.tensor import DTensor, Replicate, Shard


def count() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over all processes of each tensor, in one collective; the tensors themselves in a single process."""
    if count() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([t.flatten().float() for t in tensors])
    distributed.all_reduce(flat)
    parts = torch.split(flat / count(), [t.numel() for t in tensors])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]


def agree(tensors: Sequence[Tensor]) -> None:
    """Broadcast the tensors from rank 0, in place."""
    if count() > 1:
        for t in tensors:
            distributed.broadcast(t, src=0)


def sharded(x: Tensor) -> "TypeIs[DTensor]":
    """Whether this tensor is sharded or replicated over processes as a ``DTensor``."""
    return distributed.is_available() and isinstance(x, DTensor)


def by_rows(x: Tensor) -> bool:
    """Whether the tensor is whole, replicated or sharded by rows."""
    return not sharded(x) or all(type(p) is Replicate or (type(p) is Shard and p.dim == 0) for p in x.placements)


def local(x: Tensor) -> Tensor:
    """The local part of a tensor; shares its memory."""
    return x.to_local() if sharded(x) else x


def shards(x: Tensor) -> int:
    """The number of shards of a tensor."""
    if not sharded(x):
        return 1
    return prod(n for n, p in zip(x.device_mesh.shape, x.placements, strict=True) if type(p) is not Replicate)


def totals(parts: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Sums over all shards.

    Args:
        parts: scalars, each computed from this process's part of the tensor in ``like`` at the same index.
        like: tensors, sharded or whole.
    """
    if not any(map(sharded, like)):
        return list(parts)
    return [x * shards(p) for x, p in zip(mean(parts), like, strict=True)]


def part(whole: Tensor, like: Tensor) -> Tensor:
    """The rows of ``whole`` at the places of this process's rows of ``like``."""
    if not sharded(like):
        return whole
    everywhere = [Replicate()] * like.device_mesh.ndim
    spread = DTensor.from_local(whole, like.device_mesh, everywhere, run_check=False)
    return spread.redistribute(placements=like.placements).to_local()


def gather(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``part``, a collective: returns the whole tensor in every process."""
    if not sharded(like):
        return rows
    shape = like.shape if rows.shape == local(like).shape else torch.Size((like.shape[0], *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    spread = DTensor.from_local(
        rows.contiguous(), like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
    )
    return spread.full_tensor()
