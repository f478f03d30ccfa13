"""Selection of one of several states by resonance: by agreement alone, without a score or a reward.

Notation: ``u`` (n, d) states as unit vectors, ``w`` (n,) their weights.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

MERGE = 0.8  # cosine similarity from which states are considered equivalent
BLOCK = 512  # number of states compared at once


class Selection(NamedTuple):
    """The selected candidate, and measures of agreement."""

    chosen: int  #: index of the selected candidate
    share: float  #: share of its lineage in the total weight, in (0, 1]
    entropy: float  #: entropy of the lineages' shares, in nats: 0 if all agree, log n if none do
    resonance: float  #: weighted mean cosine similarity of the selected candidate to all, in [-1, 1]
    lineages: Tensor  #: (n,) index of each candidate's leader


def emergence_select(states: Tensor, merge: float = MERGE, weight: Tensor | None = None) -> Selection:
    """The candidate that most of the others resonate with: the medoid of the largest lineage.

    Selecting the candidate with the largest mean similarity to all others is minimum Bayes risk decoding (Kumar & Byrne
    2004); the entropy is semantic entropy (Kuhn et al. 2023), with lineages as meanings.

    >>> emergence_select(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.1]]))[:2]
    (1, 0.75)

    Args:
        states: the candidates as vectors (n, d), n >= 1; their norms have no effect.
        merge: in [-1, 1]; cosine similarity from which two candidates belong to one lineage.
        weight: weight of each candidate (n,), >= 0 and not all 0; default: 1 each.

    Raises:
        ValueError: an argument has another shape or range, or is not finite.
    """
    return medoid(states, leaders(states, merge), weight)


def medoid(states: Tensor, lineages: Tensor, weight: Tensor | None = None) -> Selection:
    """The state with the largest mean similarity to those of the largest lineage; ties go to the most coherent one.

    Linear in n: the sum of cosine similarities to all members is ``u · Σ w u``.

    Args:
        states: vectors (n, d).
        lineages: index (n,) of one state of the lineage of each state.
        weight: weight of each state (n,), as in ``emergence_select``.

    Raises:
        ValueError: an argument has another shape or range, or is not finite.
    """
    u, w = unit(states), _weights(states, weight)
    voices = torch.zeros_like(w).index_add_(0, lineages, w)
    voice = torch.zeros_like(u).index_add_(0, lineages, w[:, None].to(u) * u)
    largest = voice.norm(dim=1).where(voices == voices.max(), -1.0).argmax()
    chosen = (u @ voice[largest]).where((lineages == largest) & (w > 0), -math.inf).argmax()
    shares, resonance = voices / voices.sum(), u[chosen] @ voice.sum(0) / w.sum()
    entropy = torch.special.entr(shares).sum()
    return Selection(int(chosen), float(shares[largest]), float(entropy), float(resonance), lineages)


def leaders(states: Tensor, merge: float = MERGE) -> Tensor:
    """For each state, in order: its most similar leader if their similarity is at least ``merge``, else itself.

    Leader clustering (Hartigan 1975) in blocks: n·k similarities for k leaders, at most BLOCK·k of them at once.

    >>> leaders(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]))
    tensor([0, 1, 0])

    Args:
        states: vectors (n, d).
        merge: in [-1, 1].

    Returns:
        The index of each state's leader, (n,).

    Raises:
        ValueError: an argument has another shape or range, or is not finite.
    """
    if not -1 <= merge <= 1:
        raise ValueError(f"Expected merge to be in [-1, 1], got {merge!r}.")
    u = unit(states)
    found = torch.arange(len(u), device=u.device)
    heads, places, k = torch.empty_like(u), torch.empty_like(found), 0  # the leaders so far, and their indices
    for start in range(0, len(u), BLOCK):
        x = u[start : start + BLOCK]
        best, chosen = _nearest(x, heads[:k])
        inside = x @ x.mT
        new = _stand(inside >= merge, best < merge)
        near, which = inside.where(new & _earlier(inside), -2.0).max(1)
        place = torch.where(near > best, which + start, places[:k][chosen] if k else which)
        found[start : start + len(x)] = place.where(~new, found[start : start + len(x)])
        heads[k : k + int(new.sum())], places[k : k + int(new.sum())] = x[new], new.nonzero()[:, 0] + start
        k += int(new.sum())
    return found


def agreement(states: Tensor) -> tuple[Tensor, Tensor]:
    """Coherence and novelty of each state, (n,) in [0, 1], from the states (n, d) alone.

    Coherence is the mean cosine similarity to all states, novelty 1 − the similarity to the nearest other one.

    >>> agreement(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    (tensor([0.6667, 0.6667, 0.3333]), tensor([0., 0., 1.]))
    """
    u = unit(states)
    similar = (u @ u.mT).clamp(0, 1)
    nearest = (similar - 2 * torch.eye(len(u)).to(u)).amax(1).clamp(min=0)
    return similar.mean(1), 1 - nearest


def unit(states: Tensor) -> Tensor:
    """Normalize states (n, d) to unit vectors, in single precision at least; zero vectors are unchanged.

    Raises:
        TypeError: ``states`` is not a tensor.
        ValueError: ``states`` has another shape or dtype, is empty, or is not finite.
    """
    if not isinstance(states, Tensor):
        raise TypeError(f"Expected states to be a tensor of shape (n, d), got {type(states).__name__}.")
    if states.dim() != 2 or not len(states) or not states.is_floating_point():
        raise ValueError(f"Expected states to be floats of shape (n >= 1, d), got {states.dtype} {(*states.shape,)}.")
    x = states.detach() if states.dtype == torch.double else states.detach().float()
    # Divided by the largest entry first, as squares of large numbers overflow.
    most = x.abs().amax(1, keepdim=True)
    if not most.isfinite().all():
        raise ValueError("Expected states to be finite, got inf or NaN.")
    x = x / most.clamp(min=torch.finfo(x.dtype).tiny)
    return torch.nn.functional.normalize(x, dim=1)


def _weights(states: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return torch.ones(len(states), dtype=torch.double, device=states.device)
    if weight.shape != states.shape[:1] or not (weight.isfinite() & (weight >= 0)).all() or not weight.any():
        raise ValueError(f"Expected weight to be ({len(states)},) numbers >= 0 that are not all 0, got {weight}.")
    return weight.to(states.device, torch.double)


def _nearest(x: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
    """The similarity (n,) of each state to its most similar leader, -2 without leaders, and the leader's index (n,)."""
    if not len(heads):
        return x.new_full((len(x),), -2.0), torch.zeros(len(x), dtype=torch.long, device=x.device)
    best, chosen = (x @ heads.mT).max(1)
    return best, chosen


def _stand(similar: Tensor, open: Tensor) -> Tensor:
    """Which of the ``open`` states (n,) become leaders: those not ``similar`` (n, n) to an earlier leader.

    States whose earlier similar ones are all decided are decided together: a few rounds instead of n steps.
    """
    similar, leads = similar & _earlier(similar), torch.zeros_like(open)
    while open.any():
        new = open & ~(similar & open).any(1)
        leads, open = leads | new, open & ~new & ~(similar & new).any(1)
    return leads


def _earlier(x: Tensor) -> Tensor:
    """For each pair (row, column) of ``x``, whether the column precedes the row."""
    return torch.ones_like(x, dtype=torch.bool).tril(-1)
