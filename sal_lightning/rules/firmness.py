"""Firmness: how firmly each kept direction is held, and the rest with one common stability.

Notation: ``s`` stability of a direction, ``s̄`` of the rest, ``f`` the share held of a direction beyond the rest's,
``α`` the strength.
"""

import torch
from torch import Tensor

from sal_lightning.rules import directions
from sal_lightning.rules.directions import Directions

GAP = 0.05  # a direction for which (1 − s) / (1 − s̄) >= 1 − GAP is held like the rest
LEAST = 1 / 16  # lower bound of o for the rest, however little the present data needs it
PACE = 500  # steps after a consolidation in which the strength doubles; it grows linearly,
MOST = 8  # up to this multiple


def firmed(strength: float, steps: int) -> float:
    """The strength ``α min(1 + t/500, 8)`` after t steps since a consolidation.

    Changes along a held direction accumulate over the steps, while new data is mostly learned in its first steps.

    >>> firmed(0.25, 0), firmed(0.25, 500), firmed(0.25, 100_000)
    (0.25, 0.5, 2.0)
    """
    return strength * min(1 + steps / PACE, MOST)


def firmness(s: Tensor, s_rest: Tensor) -> Tensor:
    """``f`` in [0, 1] of each direction: ``1 − (1 − s) / (1 − s̄)``, rescaled so that values up to GAP are 0.

    >>> firmness(torch.tensor([1.0, 0.6, 0.22]), torch.tensor(0.2))
    tensor([1.0000, 0.4737, 0.0000])
    """
    share = 1 - (1 - s) / (1 - s_rest).clamp(min=torch.finfo(s.dtype).tiny)
    return ((share - GAP) / (1 - GAP)).clamp(0, 1)


def worth(found: Directions, strength: float) -> int:
    """Number of directions to keep, >= 1: those held more firmly than the rest at o = 1."""
    s = directions.stability(found.lam, strength)
    s_rest = directions.stability(directions.outside(found)[:, :-1], strength)
    firm = (firmness(s, s_rest) > 0) * torch.arange(1, s.shape[-1] + 1, device=s.device)
    return max(1, int(firm.max()))


def hold(found: Directions, k: int, needed: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """``f`` (groups, k) of the first k directions, and ``s̄`` (groups,) of all others.

    ``needed`` (groups,), from LEAST to 1, is the o of the rest: how much the present data needs it.
    """
    s_rest = directions.stability(directions.outside(found)[:, k], strength, needed)[:, None]
    s = directions.stability(found.lam[:, :k], strength)
    return firmness(s, s_rest), s_rest[:, 0]
