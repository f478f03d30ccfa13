"""Holding back: one linear function of a change, applied to the gradient and to the optimizer's step alike."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sal_lightning.rules.parameters import ParameterGroup, squares


class Projection(ParameterGroup, ABC):
    """Masks the gradient of some parameters, and restores after the optimizer's step what is held of it."""

    restores = True  # whether the update is held back too, not only the gradient

    def __init__(self, name: str, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__(name, parameters)
        self.alone = False  # whether nothing is restored after the step, so that the mask has to hold everything
        # What is held; a consolidation makes a new one, so that a provisional one can be rolled back.
        self.memory: Any = None
        # Whether something else changed the weights since they were last restored; a tensor: no device is waited for.
        self.touched: Tensor | None = None
        self.before: list[Tensor] | None = None  # W₀: the weights, only while an optimizer step runs

    @property
    def holds(self) -> bool:
        """Whether anything was consolidated yet: before that a rule costs and changes nothing."""
        return self.memory is not None

    @abstractmethod
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        """The part of ``X``, one tensor a parameter (gradients or updates), that is held back: a new tensor each."""

    def undone(self, X: Sequence[Tensor]) -> list[Tensor]:
        """Likewise, of an update: what is put back in all."""
        return self.held(X)

    def mask(self, measure: bool = False) -> Tensor | None:
        """``G ← G − held(G)``; if asked to measure, returns (held², whole²)."""
        grads = self.gradients()
        if all(g is None for g in grads) or not (self.holds or measure):
            return None
        whole = [g for g in grads if g is not None]
        G = whole if len(whole) == len(grads) else self._filled(grads)
        before = [g.clone() for g in G] if measure else []
        if self.holds:
            self.hold_back(G)
        held = [b - g for b, g in zip(before, G, strict=False)]
        return torch.stack([squares(held), squares(before)]) if measure else None

    def _filled(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """Zeros for the gradients that are missing."""
        return [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights(), grads, strict=True)]

    def hold_back(self, G: Sequence[Tensor]) -> None:
        """``G ← G − held(G)``, in place."""
        for g, h in zip(G, self.held(G), strict=True):
            g.sub_(h)

    def detect_external_change(self) -> bool:
        """Before a step: take the weights as they are if somebody else moved them since the last one, and say so."""
        return False

    def snapshot(self) -> None:
        """Keep W₀ for the length of one optimizer step; costs nothing while the rule holds nothing."""
        if self.before is None and self.holds and self.restores:
            self.before = [w.clone() for w in self.weights()]

    def restore(self, measure: bool = False) -> Tensor | None:
        """``W ← W − held(W − W₀)``, now or at ``settle()``; if asked to measure, returns (held², whole²)."""
        before, self.before, self.alone = self.before, None, False
        if before is None or not self.holds:
            return None
        W, measured = self.weights(), None
        if measure:
            D = [w - w0 for w, w0 in zip(W, before, strict=True)]
            measured = torch.stack([squares(self.undone(D)), squares(D)])
        # What is frozen stays so.
        learn = [p.requires_grad for p in self.parameters.values()]
        self.put_back([w if learns else None for w, learns in zip(W, learn, strict=True)], before)
        return measured

    def put_back(self, W: Sequence[Tensor | None], W0: Sequence[Tensor]) -> None:
        """``W ← W − held(W − W₀)``, in place; None is a weight that must not move. ``W₀`` may be used up."""
        D = [w0.zero_() if w is None else torch.sub(w, w0, out=w0) for w, w0 in zip(W, W0, strict=True)]
        for w, h in zip(W, self.held(D), strict=True):
            if w is not None:
                w.sub_(h)

    @property
    def settles(self) -> bool:
        """Whether the next ``put_back`` also puts back what was left for later."""
        return False

    def settle(self) -> None:
        """Put back now what was to be put back later."""

    def record_weights(self) -> None:
        """The weights now are what the step left."""

    def accept_weights(self) -> None:
        """Take the weights as they are: somebody else has moved them."""
