"""Directions of a layer's input, their energy in past data, and the stability that follows from it.

Notation: ``x`` (groups, n, d) input rows with a 1 appended for the bias, ``U`` (groups, d, k) orthonormal directions,
``lam`` (groups, k) their energy, ``rest`` (groups,) the mean energy of a direction outside ``U``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Directions below this share of the largest are rounding noise of the single-precision input rows.
_NOISE = 1e-7


class Directions(NamedTuple):
    """Consolidated directions; each window adds a mean energy of 1 per direction."""

    U: Tensor  # (groups, d, k)
    lam: Tensor  # (groups, k)
    rest: Tensor  # (groups,)


def decompose(x: Tensor, rank: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """The ``rank`` strongest directions of rows ``x`` (groups, n, d), or fewer if they hold ``share`` of the energy.

    Returns ``U`` (groups, d, k) and ``lam`` (groups, k), largest first, with ``xᵀx ≈ U diag(lam) Uᵀ``.
    Groups with fewer directions than k are padded with zero columns.

    >>> U, lam = decompose(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]), rank=1)
    >>> lam
    tensor([[9.]])
    """
    # Double precision: in single, `eigh` returns NaN without an error for spectra as steep as a trained layer's.
    rows = x.double()
    tall = rows.shape[-2] > rows.shape[-1]
    lam, V = torch.linalg.eigh(rows.mT @ rows if tall else rows @ rows.mT)
    lam, V = lam.flip(-1).clamp(min=0), V.flip(-1)
    real = lam > _NOISE * lam[..., :1]
    U = V if tall else (rows.mT @ V) * lam.clamp(min=torch.finfo(lam.dtype).tiny).rsqrt()[..., None, :]
    U, lam = U * real[..., None, :], lam * real
    missing = lam.cumsum(-1) < share * lam.sum(-1, keepdim=True)
    k = min(rank, int((missing & real).sum(-1).max()) + 1, lam.shape[-1])
    return U[..., :k].to(x.dtype).contiguous(), lam[..., :k].to(x.dtype).contiguous()


def merge(past: Directions | None, rows: Tensor, rank: int, share: float = 1.0) -> Directions:
    """``C ← C + R̂``: add a window, given as rows (groups, n, d) whose mean energy is 1, to what was consolidated."""
    d = rows.shape[-1]
    # Each window has energy d: what is missing in `rows` lies outside the directions kept in the window. A group
    # without inputs, such as an expert that received no token, adds none.
    total = d * rows.any(-1).any(-1).to(rows.dtype)
    if past is not None:
        total = total + past.lam.sum(-1) + past.rest * (d - past.U.shape[-1])
        rows = torch.cat([rows, (past.U * past.lam.sqrt()[:, None, :]).mT], 1)
    U, lam = decompose(rows, rank, share)
    rest = (total - lam.sum(-1)).clamp(min=0) / max(d - U.shape[-1], 1)
    return Directions(U, lam, rest)


def stability(lam: Tensor, strength: float, open: Tensor | float = 1.0) -> Tensor:
    """``s = λ / (λ + o λ̄/strength)`` in [0, 1), with λ in units of a window's mean energy λ̄.

    ``open``, o in (0, 1], is how much the present data needs these directions: the smaller o, the larger s.

    >>> stability(torch.tensor([0.0, 0.1, 9.9]), strength=10.0)
    tensor([0.0000, 0.5000, 0.9900])
    """
    return lam / (lam + open / strength)


def outside(found: Directions) -> Tensor:
    """Mean energy of the directions after the first k, for k = 0 … K: (groups, K + 1)."""
    lam, d, K = found.lam, found.U.shape[-2], found.lam.shape[-1]
    tail = torch.cat([lam, found.rest[:, None] * (d - K)], -1).flip(-1).cumsum(-1).flip(-1)
    return tail / (d - torch.arange(K + 1, device=lam.device)).clamp(min=1)


def overlap(found: Directions, along: Tensor, trace: Tensor, squared: Tensor) -> Tensor:
    """``v = tr(R C)² / (tr(R²) tr(C²))``, the squared cosine of the second moments R of present and C of past inputs.

    A gradient step on an input x changes a layer's output for another input x' in proportion to ``x · x'``, and
    ``tr(R C)`` is the mean of ``(x · x')²`` between present and past inputs.

    Args:
        found: C.
        along: energy of present inputs along the first k directions, (groups, k).
        trace: ``tr(R)``, their energy along all directions, (groups,).
        squared: ``tr(R²)``, (groups,).

    Returns:
        v in [0, 1], (groups,); 1 for a group without present inputs, of which nothing is known.
    """
    lam, rest, others = found.lam, found.rest, found.U.shape[-2] - found.lam.shape[-1]
    k = along.shape[-1]
    shared = (along * lam[:, :k]).sum(-1) + (trace - along.sum(-1)).clamp(min=0) * outside(found)[:, k]
    past = lam.square().sum(-1) + others * rest.square()
    cosine = shared * (squared * past).clamp(min=torch.finfo(lam.dtype).tiny).rsqrt()
    return torch.where(trace > 0, cosine.clamp(max=1).square(), 1.0)
