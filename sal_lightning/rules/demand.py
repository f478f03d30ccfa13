"""How much present data still asks for."""

import torch
from torch import Tensor

from sal_lightning.rules.base import State

_TINY = torch.finfo(torch.float32).tiny
POWER = 0.5  # from energies to sizes: q falls as ‖G‖ does
MOST = 16  # times ḡ: what a batch counts at most, so that one wild gradient does not make all later ones look small


class Demand:
    """``q = √max(ḡ / max ḡ, o)``, in (0, 1]: ḡ is the running mean of ‖G‖², its maximum that since the window began.

    While present data has much to teach, q is near 1. Once it is learned, what is left of the gradient does little for
    it and, step by step, much to what came before; but for data that lies where that did not, o is how far it does.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.clear()

    def clear(self) -> None:
        """Nothing is known: q is 1."""
        self.sum, self.weight, self.most = torch.zeros(3)  # ḡ before it is divided by its weight; max ḡ
        self.q = torch.ones(())

    def update(self, squares: Tensor, batches: int = 1) -> None:
        """See ‖G‖² of a batch that stands for this many; one that overflowed counts as none."""
        keep = self.beta**batches
        seen, before = squares.nan_to_num(0.0, 0.0, 0.0), self._mean().to(squares)
        seen = torch.where(before > 0, seen.clamp(max=MOST * before), seen)
        self.sum = keep * self.sum.to(squares) + (1 - keep) * seen
        self.weight = keep * self.weight.to(squares) + (1 - keep)

    def tensors(self) -> list[Tensor]:
        """What several processes average."""
        return [self.sum, self.weight]

    def measure(self, needed: Tensor) -> None:
        """Take q from what was seen so far, ``needed`` being o, in (0, 1]; of its shape."""
        now = self._mean()
        self.most = torch.maximum(self.most.to(now), now)
        left = torch.where(self.most > 0, now / self.most.clamp(min=_TINY), 1.0)
        self.q = torch.maximum(left, needed) ** POWER

    def _mean(self) -> Tensor:
        mean: Tensor = self.sum / self.weight.clamp(min=_TINY)
        return mean

    def state_dict(self) -> State:
        """Tensors only."""
        return {"sum": self.sum, "weight": self.weight, "most": self.most, "q": self.q}

    def load_state_dict(self, state: State, device: torch.device) -> None:
        """Continue where another stood."""
        for name, value in state.items():
            setattr(self, name, value.to(device))
