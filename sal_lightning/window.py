"""The window: what a layer is being used for now, as a small sketch of its input's second moment."""

import torch
from torch import Tensor

from sal_lightning.directions import decompose

State = dict[str, Tensor]
_TINY = torch.finfo(torch.float32).tiny


class Window:
    """``R ← βR + (1−β) mean(x xᵀ)`` over sampled rows, kept as its ``rank`` strongest directions.

    After frequent directions (Liberty 2013), but the tail is cut, the head not shrunk; ``trace`` knows the whole.

    State is ``rank`` rows of d numbers for each group; a d × d matrix is formed only where n + rank > d.
    """

    def __init__(self, rank: int, beta: float) -> None:
        self.rank, self.beta = rank, beta
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self.B: Tensor | None = None  # (groups, ≤ rank, d): R ≈ BᵀB
        self.trace = self.weight = torch.zeros(())  # the whole energy of R; 1 − β^steps, which undoes the start at zero

    @torch.no_grad()
    def update(self, x: Tensor, steps: int = 1) -> None:
        """See rows ``x`` (groups, n, d), that stand for ``steps`` batches."""
        x, keep = x.float(), self.beta**steps
        rows = x * ((1 - keep) / x.shape[-2]) ** 0.5
        self.trace = keep * self.trace + rows.square().sum((-2, -1))
        self.weight = keep * self.weight + (1 - keep)
        if self.B is not None:
            rows = torch.cat([self.B * keep**0.5, rows], -2)
        U, lam = decompose(rows, self.rank)
        self.B = (U * lam.sqrt()[:, None, :]).mT.contiguous()

    def rows(self) -> Tensor:
        """The sketch as rows (groups, k, d), scaled so that the whole second moment has mean eigenvalue 1."""
        assert self.B is not None, "the window has seen nothing"
        return self.B * (self.B.shape[-1] / self.trace.clamp(min=_TINY)).sqrt()[:, None, None]

    def surprise(self, x: Tensor, floor: float) -> Tensor:
        """How unusual rows ``x`` (groups, n, d) are: the log of their mean Mahalanobis distance under the window.

        ``floor`` (in mean eigenvalues) is added to every eigenvalue: a direction never seen is far, not infinitely far.
        """
        B, d = self.rows(), x.shape[-1]
        # In units of the mean eigenvalue; the weight undoes the average's start at zero.
        x = x.float() * (self.weight * d / self.trace.clamp(min=_TINY)).sqrt()[:, None, None]
        lam = B.square().sum(-1)
        rest = (d - lam.sum(-1, keepdim=True)).clamp(min=0) / max(d - lam.shape[-1], 1)
        along = (x @ B.mT).square() / lam.clamp(min=_TINY)[:, None, :]
        outside = (x.square().sum(-1) - along.sum(-1)).clamp(min=0)
        distance = (along / (lam + rest + floor)[:, None, :]).sum(-1) + outside / (rest + floor)
        return distance.mean().log()

    def state_dict(self) -> State:
        """Tensors only; empty while nothing was seen."""
        return {} if self.B is None else {"B": self.B, "trace": self.trace, "weight": self.weight}

    def load_state_dict(self, state: State, device: torch.device) -> None:
        """Continue where another window stood."""
        self.clear()
        if state:
            self.B, self.trace = state["B"].to(device), state["trace"].to(device)
            self.weight = state["weight"].to(device)
