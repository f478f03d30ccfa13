"""Nyström sketch of the second moment (uncentred covariance) of a layer's input."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

State = dict[str, Tensor]
_TINY = torch.finfo(torch.float32).tiny
_DISTANCE_RANK = 32  # probes used by `distance`
_NOISE = 1e-6  # eigenvalues of ΩᵀRΩ below this share of the largest are rounding errors of single precision


@lru_cache(maxsize=64)
def probe(d: int, rank: int, device: torch.device) -> Tensor:
    """The test matrix Ω (d, rank): random signs / √d, the same on every machine; the identity if ``rank >= d``.

    >>> probe(4, 2, torch.device("cpu")).abs().unique()
    tensor([0.5000])
    """
    if rank >= d:
        return torch.eye(d, device=device)
    size = d * rank
    # Bits of a standard hash: sketches are resumed from checkpoints, so Ω must never change.
    hashed = bytearray(hashlib.shake_128(f"{d}".encode()).digest(-(-size // 8)))
    bits = torch.frombuffer(hashed, dtype=torch.uint8)[:, None] >> torch.arange(8) & 1
    signs = bits.flatten()[:size].view(d, rank) * 2.0 - 1
    return torch.as_tensor(signs / d**0.5, device=device)


def finite_rows(x: Tensor) -> Tensor:
    """Replace rows with values that are not finite by zeros, without a device synchronization."""
    return torch.where(x.isfinite().all(-1, keepdim=True), x, 0.0)


class InputSketch:
    """``R ← βR + (1−β) mean(x xᵀ)`` over sampled rows, kept as ``Y = RΩ``.

    A Nyström sketch (Tropp et al. 2017). It is linear in R, so an update costs two thin matrix products and processes
    are merged by a sum; it is decomposed only in ``rows`` and ``refresh``. ``trace`` is the trace of R.
    """

    def __init__(self, d: int, rank: int, beta: float, groups: int = 1) -> None:
        self.d, self.rank, self.beta, self.groups = d, min(rank, d), beta, groups
        self.clear()

    def clear(self) -> None:
        """Start a new, empty window."""
        self.Y: Tensor | None = None  # (groups, d, rank)
        self.trace = self.weight = torch.zeros(())  # trace of R, (groups,); 1 − β^steps, for bias correction
        self.along = torch.zeros(self.groups, 0)  # the part of the trace along each held direction, (groups, k)
        self.P: Tensor | None = None  # the factor that `distance` uses, from the last `refresh`

    @torch.no_grad()
    def update(self, x: Tensor, steps: int = 1, U: Tensor | None = None) -> None:
        """Update the sketch with sampled rows.

        Args:
            x: rows, (groups, n, d).
            steps: number of batches that the rows stand for.
            U: held directions, (groups, d, k), whose energy is accumulated in ``along``.
        """
        x, keep = finite_rows(x.float()), self.beta**steps
        share = (1 - keep) / x.shape[-2]
        xO = x @ probe(self.d, self.rank, x.device)
        if self.Y is None:
            self.start(x.device)
        assert self.Y is not None
        self.Y = torch.baddbmm(self.Y, x.mT, xO, beta=keep, alpha=share)
        self.trace = keep * self.trace + share * x.square().sum((-2, -1))
        self.weight = keep * self.weight + (1 - keep)
        if U is not None:
            self.follow(U.shape[-1])
            self.along = keep * self.along + share * (x @ U).square().sum(-2)

    def follow(self, k: int) -> None:
        """Let ``along`` have k directions; energies along another number of directions are dropped."""
        if self.along.shape[-1] != k:
            self.along = torch.zeros(self.groups, k, device=self.trace.device)

    def start(self, device: torch.device) -> None:
        """Allocate an empty window."""
        self.Y = torch.zeros(self.groups, self.d, self.rank, device=device)
        self.trace, self.along = torch.zeros(self.groups, device=device), torch.zeros(self.groups, 0, device=device)
        self.weight = torch.zeros((), device=device)

    def outside(self, k: int) -> Tensor:
        """Mean energy (groups,) of the d − k directions that are not held, in units of the mean over all directions."""
        share = 1 - self.along.sum(-1) / self.trace.clamp(min=_TINY)
        return share * self.d / max(self.d - k, 1)

    def squared(self) -> Tensor:
        """``tr(R²)``, (groups,); an estimate where the sketch is smaller than R, since ``E[Ω Ωᵀ] = rank / d``."""
        assert self.Y is not None, "the window is empty"
        return self.Y.square().sum((-2, -1)) * (self.d / self.rank)

    def rows(self) -> Tensor:
        """The sketch as rows (groups, k, d): R ≈ rowsᵀ rows, scaled so that R has mean eigenvalue 1."""
        assert self.Y is not None, "the window is empty"
        Y = self.Y.double()
        A = probe(self.d, self.rank, Y.device).to(Y).mT @ Y
        a, V = torch.linalg.eigh((A + A.mT) / 2)
        real = a > _NOISE * a[..., -1:]
        # R ≈ Y A⁻¹ Yᵀ
        B = (Y @ V) * (a.clamp(min=torch.finfo(a.dtype).tiny).rsqrt() * real)[..., None, :]
        rows: Tensor = B.mT * self._units().sqrt()[:, None, None]
        return rows.float()

    def refresh(self, floor: float) -> None:
        """Make the current sketch the reference of ``distance`` until the next ``refresh``.

        Args:
            floor: added to every eigenvalue, in units of the mean eigenvalue, so that distances stay finite.
        """
        assert self.Y is not None, "the window is empty"
        # In units of the mean eigenvalue; the bias correction cancels, since the trace has the same.
        k = self.rank if self.rank == self.d else min(self.rank, _DISTANCE_RANK)
        Y = self.Y[..., :k].double() * self._units()[:, None, None]
        # Woodbury: (R + floor)⁻¹ = (1 − P Pᵀ) / floor with P = Y L⁻ᵀ, L Lᵀ = floor ΩᵀY + YᵀY.
        A = probe(self.d, self.rank, Y.device)[:, :k].to(Y).mT @ Y
        M = floor * (A + A.mT) / 2 + Y.mT @ Y
        noise = (_NOISE * M.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp(min=_TINY)
        M = M + noise[:, None, None] * torch.eye(k).to(M)
        L, _ = torch.linalg.cholesky_ex(M)
        self.P = torch.linalg.solve_triangular(L, Y.mT, upper=False).mT.float()

    def distance(self, x: Tensor, floor: float) -> Tensor:
        """The novelty log(1 + ``xᵀ (R + floor)⁻¹ x``), (groups, n), of rows ``x`` (groups, n, d)."""
        assert self.P is not None, "refresh() has to be called first"
        # The weight is the bias correction of the running mean.
        unit = self.weight * self._units()
        x = x.float()
        outside = x.square().sum(-1) - (x @ self.P).square().sum(-1)
        return (outside.clamp(min=0) * (unit / floor)[:, None]).log1p()

    def _units(self) -> Tensor:
        """One over the mean eigenvalue of R, (groups,); 0 for a group without rows, e.g. an expert without tokens."""
        return torch.where(self.trace > _TINY, self.d / self.trace.clamp(min=_TINY), 0.0)

    def state_dict(self) -> State:
        """Tensors only; empty before the first update."""
        if self.Y is None:
            return {}
        state = {"Y": self.Y, "trace": self.trace, "weight": self.weight, "along": self.along}
        return state if self.P is None else state | {"P": self.P}

    def load_state_dict(self, state: State, device: torch.device) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: the state is of inputs of another size.
        """
        self.clear()
        if not state:
            return
        state = {name: x.to(device) for name, x in state.items()}
        if state["Y"].shape[-2] != self.d:
            got = state["Y"].shape[-2]
            raise ValueError(f"Expected the state of a layer with {self.d} inputs (its bias is one), got {got}.")
        self.Y, self.trace, self.weight = state["Y"], state["trace"], state["weight"]
        self.along, self.P = state["along"], state.get("P")
