"""The emergence field: how coherent a batch of states is, how new, how it resonates with the past. It only observes."""

from typing import NamedTuple

import torch
from torch import Tensor

from sal_lightning.directions import decompose
from sal_lightning.window import Window

COHERENT, NOVEL = 0.6, 0.4  # where emergence begins
BETA = 0.99  # the field remembers about a hundred observations
NOISE = 1e-3  # directions with less than this share of the strongest one's energy were not really seen


class EmergenceState(NamedTuple):
    """One observation, each in [0, 1]."""

    coherence: float
    novelty: float
    resonance: float
    emergence: bool


class EmergenceField:
    """A running second moment of past states, of any shape (states, d) or (d,).

    >>> field = EmergenceField()
    >>> pattern = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    >>> field.observe(pattern)
    EmergenceState(coherence=1.0, novelty=1.0, resonance=0.0, emergence=True)
    >>> field.observe(pattern)
    EmergenceState(coherence=1.0, novelty=0.0, resonance=1.0, emergence=False)
    """

    def __init__(self, rank: int = 64) -> None:
        self.rank = rank
        self.window: Window | None = None

    def measure_coherence(self, state: Tensor) -> float:
        """1 − the spectral entropy of the batch's second moment, as a share of the largest possible."""
        x = _states(state)
        _, lam = decompose(x[None], min(x.shape))
        p = lam[0] / lam.sum().clamp(min=torch.finfo(lam.dtype).tiny)
        most = torch.log(torch.tensor(float(max(min(x.shape), 2))))
        return float((1 - torch.special.entr(p).sum() / most).clamp(0, 1))

    def measure_novelty(self, state: Tensor) -> float:
        """The share of the states' energy outside the field's directions; 1 before anything was observed."""
        if self.window is None:
            return 1.0
        x, (U, _) = _states(state), self._directions()
        whole = x.square().sum()
        return float((1 - (x @ U).square().sum() / whole).clamp(0, 1)) if whole > 0 else 0.0

    def measure_resonance(self, state: Tensor) -> float:
        """The share of the states' energy inside the field, each direction weighted by its energy (strongest: 1)."""
        if self.window is None:
            return 0.0
        x, (U, lam) = _states(state), self._directions()
        whole = x.square().sum()
        return float(((x @ U).square() * lam / lam.max()).sum() / whole) if whole > 0 else 0.0

    def detect_emergence(self, coherence: float, novelty: float) -> bool:
        """Whether something coherent is new."""
        return bool(coherence >= COHERENT and novelty >= NOVEL)

    def observe(self, state: Tensor) -> EmergenceState:
        """Measure a batch of states, then add it to the field."""
        coherence, novelty = self.measure_coherence(state), self.measure_novelty(state)
        resonance = self.measure_resonance(state)
        x = _states(state)
        self.window = self.window or Window(x.shape[1], self.rank, BETA)
        self.window.update(x[None])
        return EmergenceState(coherence, novelty, resonance, self.detect_emergence(coherence, novelty))

    def _directions(self) -> tuple[Tensor, Tensor]:
        assert self.window is not None
        U, lam = decompose(self.window.rows(), self.rank)
        seen = lam[0] > NOISE * lam[0, 0]
        return U[0][:, seen], lam[0, seen]


def _states(state: Tensor) -> Tensor:
    x = state.detach().float()
    return x[None] if x.dim() == 1 else x.flatten(1)
