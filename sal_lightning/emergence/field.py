"""The emergence field: coherence, novelty and resonance of a batch of states, compared with past states.

Notation: ``x`` (n, d) states, ``U`` (d, k) orthonormal directions of past states, ``lam`` (k,) their energy.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sal_lightning.input_sketch import InputSketch, finite_rows
from sal_lightning.rules.directions import decompose

COHERENT, NOVEL = 0.6, 0.4  # thresholds of emergence
BETA = 0.99  # decay of the field: about a hundred observations
NOISE = 1e-3  # directions with less than this share of the strongest one's energy are noise


class EmergenceState(NamedTuple):
    """One observation."""

    coherence: float  #: in [0, 1]
    novelty: float  #: in [0, 1]
    resonance: float  #: in [0, 1]
    emergence: bool  #: whether coherence >= 0.6 and novelty >= 0.4


def coherence(x: Tensor) -> Tensor:
    """``1 − H / log d``, with H the spectral entropy of order 2 of the second moment ``C = E[x xᵀ]``: a scalar.

    ``H = −log(tr C² / (tr C)²)`` (Rényi 1961). Order 2 is used instead of Shannon's because both traces have unbiased
    estimates from the pairs of different rows (Chen, Zhang & Zhong 2010), so that a few rows of noise in many
    dimensions do not appear coherent: ``tr C² ≈ mean (xᵢ·xⱼ)²`` and ``(tr C)² ≈ mean ‖xᵢ‖²‖xⱼ‖²`` over i ≠ j.

    >>> coherence(torch.tensor([[1.0, 2.0], [2.0, 4.0]])), coherence(torch.eye(4).repeat(2, 1))
    (tensor(1.), tensor(0.))
    """
    d = x.shape[1]
    x = x / x.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
    energy = x.square().sum(1)
    most = energy.sum().square() - energy.square().sum()
    # A single state, or d = 1, has coherence 1; zeros have 0.
    purity = torch.where(most > 0, _alike(x, energy) / most, (energy.sum() > 0).to(x.dtype))
    return (1 + purity.clamp(min=1 / d).log() / math.log(max(d, 2))).clamp(0, 1) * (energy.sum() > 0)


def _alike(x: Tensor, energy: Tensor) -> Tensor:
    """``Σ (xᵢ·xⱼ)²`` over i ≠ j, by the smaller of the two matrix products."""
    if len(x) <= x.shape[1]:
        return (x @ x.mT).fill_diagonal_(0).square().sum()
    return (x.mT @ x).square().sum() - energy.square().sum()


def novelty(x: Tensor, U: Tensor) -> Tensor:
    """The share of the states' energy outside the directions, a scalar in [0, 1]; 0 if all states are zero.

    >>> novelty(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [0.0]]))
    tensor(0.2000)
    """
    return _share(x, x - (x @ U) @ U.mT)


def resonance(x: Tensor, U: Tensor, lam: Tensor) -> Tensor:
    """The share of the states' energy inside, each direction weighted by its energy (strongest: 1): a scalar in [0, 1].

    >>> resonance(torch.tensor([[1.0, 1.0]]), torch.eye(2), torch.tensor([4.0, 2.0]))
    tensor(0.7500)
    """
    return _share(x, (x @ U) * (lam / lam.amax().clamp(min=torch.finfo(lam.dtype).tiny)).sqrt())


def _share(whole: Tensor, part: Tensor) -> Tensor:
    energy = whole.square().sum()
    return torch.where(energy > 0, part.square().sum() / energy, 0.0).clamp(0, 1)


class EmergenceField:
    """A running second moment of past states, as a sketch; the states themselves are not stored.

    States have the shape (..., d) or (d,) and any floating-point dtype; the field is on their device. States with
    values that are not finite count as zero.

    >>> field = EmergenceField()
    >>> pattern = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    >>> field.observe(pattern)
    EmergenceState(coherence=1.0, novelty=1.0, resonance=0.0, emergence=True)
    >>> field.observe(pattern)
    EmergenceState(coherence=1.0, novelty=0.0, resonance=1.0, emergence=False)

    Args:
        rank: >= 1; largest number of directions kept.

    Raises:
        ValueError: ``rank`` is outside its range; in methods, states are empty, not floating point, or of another
            width than before.
    """

    def __init__(self, rank: int = 64) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"Expected rank to be a whole number >= 1, got {rank!r}.")
        self.rank = rank
        self.window: InputSketch | None = None
        self._found: tuple[Tensor, Tensor] | None = None  # cached directions of the window

    def measure_coherence(self, state: Tensor) -> float:
        """1 − the spectral entropy of the batch's second moment relative to its maximum: in [0, 1]."""
        return float(self.measure(state)[0])

    def measure_novelty(self, state: Tensor) -> float:
        """The share of the states' energy outside the field's directions, in [0, 1]; 1 before anything was observed."""
        return float(self.measure(state)[1])

    def measure_resonance(self, state: Tensor) -> float:
        """The share of the states' energy inside the field, directions weighted by energy (strongest: 1): in [0, 1]."""
        return float(self.measure(state)[2])

    def detect_emergence(self, coherence: float, novelty: float) -> bool:
        """Whether coherence >= 0.6 and novelty >= 0.4."""
        return bool(coherence >= COHERENT and novelty >= NOVEL)

    def observe(self, state: Tensor) -> EmergenceState:
        """Measure a batch of states, then add it to the field."""
        seen = self.measure(state)
        self.update(state)
        together, new, inside, emergence = seen.tolist()
        return EmergenceState(together, new, inside, bool(emergence))

    def measure(self, state: Tensor) -> Tensor:
        """Coherence, novelty, resonance and emergence (0 or 1) as a tensor (4,) on the device of the states."""
        x = self._states(state)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            together, new, inside = coherence(x), torch.ones((), device=x.device), torch.zeros((), device=x.device)
            if self.window is not None:
                U, lam = self._directions(self.window)
                new, inside = novelty(x, U), resonance(x, U, lam)
        emergence = (together >= COHERENT) & (new >= NOVEL)
        return torch.stack([together, new, inside, emergence.to(x.dtype)])

    def update(self, state: Tensor, steps: int = 1) -> None:
        """Add a batch that represents ``steps`` batches, without measuring it and without synchronization."""
        x = self._states(state)
        self.window = self.window or InputSketch(x.shape[1], self.rank, BETA)
        with torch.autocast(x.device.type, enabled=False):
            self.window.update(x[None], steps)
        self._found = None

    @property
    def nbytes(self) -> int:
        """Memory of the field in bytes; it does not grow with the number of observations."""
        return 0 if self.window is None else sum(t.nbytes for t in self.window.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and numbers; without ``d`` and ``window`` before the first observation."""
        seen = {} if self.window is None else {"d": self.window.d, "window": self.window.state_dict()}
        return {"rank": self.rank} | seen

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Load a state onto ``device``.

        Raises:
            ValueError: the state is of a field of another rank.
        """
        if state["rank"] != self.rank:
            raise ValueError(f"Expected the state of a field of rank {self.rank}, got that of rank {state['rank']}.")
        self.window = self._found = None
        if "d" in state:
            self.window = InputSketch(state["d"], self.rank, BETA)
            self.window.load_state_dict(state["window"], torch.device(device))

    def _states(self, state: Tensor) -> Tensor:
        if not state.is_floating_point() or state.dim() == 0 or not state.numel():
            raise ValueError(f"Expected state to be floats of shape (..., d), got {state.dtype} {(*state.shape,)}.")
        x = state.detach().reshape(-1, state.shape[-1]).float()
        if self.window is not None and x.shape[1] != self.window.d:
            raise ValueError(f"Expected state to be of width {self.window.d} as before, got {x.shape[1]}.")
        return finite_rows(x)

    def _directions(self, window: InputSketch) -> tuple[Tensor, Tensor]:
        if self._found is None:
            U, lam = decompose(window.rows(), self.rank)
            seen = lam[0] > NOISE * lam[0, 0]
            self._found = U[0] * seen, lam[0] * seen
        return self._found
