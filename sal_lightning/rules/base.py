"""What every rule is: one linear question, "what part of this change is held back?", to gradient and update alike."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# A score above HIGH is protected, below LOW volatile, between (edges included) neutral.
LOW, HIGH = 0.3, 0.7

State = dict[str, Any]


def bands(scores: Tensor, size: float = 1.0) -> Tensor:
    """Count the scores (any shape), each for ``size`` weights, as (protected, neutral, volatile).

    >>> bands(torch.tensor([0.9, 0.7, 0.5, 0.1]))
    tensor([1., 2., 1.])
    """
    high, low = (scores > HIGH).sum(), (scores < LOW).sum()
    return torch.stack([high, scores.numel() - high - low, low]).float() * size


class Rule(ABC):
    """How the stability of some parameters is measured, and how a change to them is held back."""

    grain: str  # the word for it in ``coverage()``
    restores = True  # whether the update is held back too, not only the gradient

    def __init__(self, name: str, parameters: dict[str, nn.Parameter]) -> None:
        self.name, self.parameters = name, parameters
        # What is held, never changed in place, so that a provisional consolidation can be taken back.
        self.memory: Any = None
        self.before: list[Tensor] | None = None  # W₀: the weights, only while an optimizer step runs

    @property
    def holds(self) -> bool:
        """Whether anything was consolidated yet: before that a rule costs and changes nothing."""
        return self.memory is not None

    @abstractmethod
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        """The part of ``X``, one tensor a parameter (gradients or updates), that is held back: a new tensor each."""

    @abstractmethod
    def observe(self) -> None:
        """Take this step's inputs and gradients (still whole) into the window."""

    @abstractmethod
    def consolidate(self) -> None:
        """Add the window to what is held."""

    @abstractmethod
    def clear(self) -> None:
        """Begin a new window."""

    @abstractmethod
    def bands(self) -> Tensor:
        """Weights that are (protected, neutral, volatile): counts that sum to the number of weights."""

    @abstractmethod
    def state_dict(self) -> State:
        """Tensors and numbers only."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Continue where another rule of the same name stood."""

    @abstractmethod
    def pack(self, memory: Any) -> State:
        """A memory as named tensors, for ``torch.load(weights_only=True)``; empty for None."""

    @abstractmethod
    def unpack(self, state: State) -> Any:
        """The memory that ``pack`` packed, on the parameters' device."""

    @property
    def device(self) -> torch.device:
        """Where the parameters live now."""
        return next(iter(self.parameters.values())).device

    def numel(self) -> int:
        """Weights under this rule."""
        return sum(p.numel() for p in self.parameters.values())

    def drift(self) -> Tensor | None:
        """How far what is held has moved, as (moved², size²); None where the rule keeps no reference."""
        return None

    def forget_step(self) -> None:  # noqa: B027  (a rule that gathers nothing has nothing to drop)
        """Drop what was gathered in a step that will not be observed."""

    def tensors(self) -> list[Tensor]:
        """Everything this rule keeps between steps, for ``memory()``."""
        return list(_tensors(self.state_dict()))

    def mask(self, measure: bool = False) -> Tensor | None:
        """``G ← G − held(G)``; if asked to measure, returns (held², whole²)."""
        grads = [p.grad for p in self.parameters.values()]
        if all(g is None for g in grads):
            return None
        if not self.holds:
            whole = squares([g for g in grads if g is not None]) if measure else None
            return None if whole is None else torch.stack([torch.zeros_like(whole), whole])
        G = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters.values(), grads, strict=True)]
        H = self.held(G)
        measured = torch.stack([squares(H), squares(G)]) if measure else None
        for g, h in zip(G, H, strict=True):
            g.sub_(h)
        return measured

    def snapshot(self) -> None:
        """Keep W₀ for the length of one optimizer step; costs nothing while the rule holds nothing."""
        if self.holds and self.restores:
            self.before = [p.detach().clone() for p in self.parameters.values()]

    def restore(self, measure: bool = False) -> Tensor | None:
        """``W ← W − back(W − W₀)``; if asked to measure, returns (kept back², whole²)."""
        if self.before is None:
            return None
        W = [p.detach() for p in self.parameters.values()]
        D = [torch.sub(w, w0, out=w0) for w, w0 in zip(W, self.before, strict=True)]
        self.before = None
        H = self.back(D)
        for w, h in zip(W, H, strict=True):
            w.sub_(h)
        return torch.stack([squares(H), squares(D)]) if measure else None

    def back(self, D: Sequence[Tensor]) -> list[Tensor]:
        """What restoration takes from the update ``D``."""
        return self.held(D)


def squares(X: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all entries, in single precision."""
    dense = [x.coalesce().values() if x.is_sparse else x for x in X]
    return torch.stack([torch.linalg.vector_norm(x).float() for x in dense]).square().sum()


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _tensors(v)
