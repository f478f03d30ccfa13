"""How firmly each direction is held, and as one all those that were not kept.

Letters: ``s`` stability of a direction, ``s̄`` of the rest, ``f`` what is held back of a direction beyond that,
``α`` the strength.
"""

import torch
from torch import Tensor

from sal_lightning.rules import directions
from sal_lightning.rules.directions import Directions

GAP = 0.05  # a direction that passes at least 1 − GAP of what the rest passes is held like the rest
LEAST = 1 / 16  # as far as the rest is always open, where present data hardly needs it
PACE = 500  # steps after a consolidation by which the strength has grown by itself,
MOST = 8  # at most to so many times itself


def firmed(strength: float, steps: int) -> float:
    """The strength ``α min(1 + t/500, 8)`` after t steps since a consolidation.

    What passes along a held direction adds up over the steps. New data teaches the network most in its first steps.

    >>> firmed(0.25, 0), firmed(0.25, 500), firmed(0.25, 100_000)
    (0.25, 0.5, 2.0)
    """
    return strength * min(1 + steps / PACE, MOST)


def firmness(s: Tensor, s_rest: Tensor) -> Tensor:
    """Which share of what the rest passes a direction holds back, less GAP: 0 costs nothing, 1 passes nothing.

    >>> firmness(torch.tensor([1.0, 0.6, 0.22]), torch.tensor(0.2))
    tensor([1.0000, 0.4737, 0.0000])
    """
    share = 1 - (1 - s) / (1 - s_rest).clamp(min=torch.finfo(s.dtype).tiny)
    return ((share - GAP) / (1 - GAP)).clamp(0, 1)


def worth(found: Directions, strength: float) -> int:
    """How many directions are worth their cost: they are held firmer than the rest where that is fully open."""
    s = directions.stability(found.lam, strength)
    s_rest = directions.stability(_rest(found)[:, :-1], strength)
    firm = (firmness(s, s_rest) > 0) * torch.arange(1, s.shape[-1] + 1, device=s.device)
    return max(1, int(firm.max()))


def hold(found: Directions, k: int, needed: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Of the first k directions ``f`` (groups, k), and of all others as one ``s̄`` (groups,).

    The rest is open as far as it is ``needed`` (groups,), from LEAST to 1.
    """
    s_rest = directions.stability(_rest(found)[:, k], strength, needed)[:, None]
    s = directions.stability(found.lam[:, :k], strength)
    return firmness(s, s_rest), s_rest[:, 0]


def _rest(found: Directions) -> Tensor:
    """Mean energy of the directions after the first k, for k = 0 … K: (groups, K + 1)."""
    lam, d, K = found.lam, found.U.shape[-2], found.lam.shape[-1]
    tail = torch.cat([lam, found.rest[:, None] * (d - K)], -1).flip(-1).cumsum(-1).flip(-1)
    return tail / (d - torch.arange(K + 1, device=lam.device)).clamp(min=1)
