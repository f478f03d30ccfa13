"""Demand: how much there is left to learn in the present data, from the size of its gradients."""

import torch
from torch import Tensor

from sal_lightning.rules.base import State

_TINY = torch.finfo(torch.float32).tiny
POWER = 0.5  # from energies to norms: q is proportional to ‖G‖
MOST = 16  # a batch is clamped to this many times ḡ, so that one outlier does not make all later gradients small


class Demand:
    """``q = √max(ḡ / max ḡ, o)``, in (0, 1]: ḡ is the running mean of ‖G‖², max ḡ its maximum in the window.

    q is near 1 while the present data is being learned. Later gradients improve it little, but still change what was
    learned before. The lower bound o is the mean energy of the present data outside the held directions.

    Args:
        beta: decay of the running mean per batch, in (0, 1).
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.clear()

    def clear(self) -> None:
        """Reset the statistics: q is 1."""
        self.sum, self.weight, self.most = torch.zeros(3)  # ḡ before it is divided by its weight; max ḡ
        self.q = torch.ones(())

    def update(self, squares: Tensor, batches: int = 1) -> None:
        """Update ḡ with ‖G‖² of a batch, a scalar; values that are not finite count as 0.

        Args:
            squares: ‖G‖².
            batches: number of batches that this one represents.
        """
        keep = self.beta**batches
        seen, before = squares.nan_to_num(0.0, 0.0, 0.0), self._mean().to(squares)
        seen = torch.where(before > 0, seen.clamp(max=MOST * before), seen)
        self.sum = keep * self.sum.to(squares) + (1 - keep) * seen
        self.weight = keep * self.weight.to(squares) + (1 - keep)

    def tensors(self) -> list[Tensor]:
        """Tensors that are averaged over processes."""
        return [self.sum, self.weight]

    def measure(self, needed: Tensor) -> None:
        """Compute q, of the shape of ``needed``, which is o in (0, 1]."""
        now = self._mean()
        self.most = torch.maximum(self.most.to(now), now)
        left = torch.where(self.most > 0, now / self.most.clamp(min=_TINY), 1.0)
        self.q = torch.maximum(left, needed) ** POWER

    def _mean(self) -> Tensor:
        mean: Tensor = self.sum / self.weight.clamp(min=_TINY)
        return mean

    def state_dict(self) -> State:
        """State as tensors only."""
        return {"sum": self.sum, "weight": self.weight, "most": self.most, "q": self.q}

    def load_state_dict(self, state: State, device: torch.device) -> None:
        """Load a state onto ``device``."""
        for name, value in state.items():
            setattr(self, name, value.to(device))
