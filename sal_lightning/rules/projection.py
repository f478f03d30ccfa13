"""Projection: one linear function of a change, applied to the gradient and to the optimizer's step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sal_lightning.rules.parameters import ParameterGroup, squares


class Projection(ParameterGroup, ABC):
    """Masks the gradient of a group of parameters, and undoes the held part of the optimizer's step."""

    restores = True  # whether the optimizer's step is restored too, not only the gradient masked

    def __init__(self, name: str, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__(name, parameters)
        self.alone = False  # whether nothing is restored after the step, so that the mask removes all that is held
        # What is held; a consolidation makes a new one, so that a provisional one can be rolled back.
        self.memory: Any = None
        # Whether something else changed the weights since the last restore; a tensor, to avoid synchronization.
        self.touched: Tensor | None = None
        self.before: list[Tensor] | None = None  # W₀: the weights, only while an optimizer step runs

    @property
    def holds(self) -> bool:
        """Whether anything was consolidated yet; before that, a rule has no effect and no cost."""
        return self.memory is not None

    @abstractmethod
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        """The held part of ``X`` (gradients or updates, one tensor per parameter), as new tensors."""

    def undone(self, X: Sequence[Tensor]) -> list[Tensor]:
        """The part of an update that is undone, now and at ``settle()``, as new tensors."""
        return self.held(X)

    def mask(self, measure: bool = False) -> Tensor | None:
        """``G ← G − held(G)``, in place; if ``measure``, returns (held², whole²), (2,)."""
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
        """Replace missing gradients by zeros."""
        return [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights(), grads, strict=True)]

    def hold_back(self, G: Sequence[Tensor]) -> None:
        """``G ← G − held(G)``, in place."""
        for g, h in zip(G, self.held(G), strict=True):
            g.sub_(h)

    def detect_external_change(self) -> bool:
        """Before a step: accept weights that were changed by other code since the last one.

        Returns:
            Whether such a change was found and accepted.
        """
        return False

    def snapshot(self) -> None:
        """Keep W₀ during one optimizer step, if the rule holds anything."""
        if self.before is None and self.holds and self.restores:
            self.before = [w.clone() for w in self.weights()]

    def restore(self, measure: bool = False) -> Tensor | None:
        """``W ← W − held(W − W₀)``, now or at ``settle()``; if ``measure``, returns (held², whole²), (2,)."""
        before, self.before, self.alone = self.before, None, False
        if before is None or not self.holds:
            return None
        W, measured = self.weights(), None
        if measure:
            D = [w - w0 for w, w0 in zip(W, before, strict=True)]
            measured = torch.stack([squares(self.undone(D)), squares(D)])
        # Frozen weights must not change.
        learn = [p.requires_grad for p in self.parameters.values()]
        self.put_back([w if learns else None for w, learns in zip(W, learn, strict=True)], before)
        return measured

    def put_back(self, W: Sequence[Tensor | None], W0: Sequence[Tensor]) -> None:
        """``W ← W − held(W − W₀)``, in place; None stands for a frozen weight. ``W₀`` may be overwritten."""
        D = [w0.zero_() if w is None else torch.sub(w, w0, out=w0) for w, w0 in zip(W, W0, strict=True)]
        for w, h in zip(W, self.held(D), strict=True):
            if w is not None:
                w.sub_(h)

    @property
    def settles(self) -> bool:
        """Whether the next ``put_back`` also settles."""
        return False

    def settle(self) -> None:
        """Undo at once what was left to be undone later."""

    def record_weights(self) -> None:
        """Record the weights after a step, to detect changes made by other code."""

    def accept_weights(self) -> None:
        """Take the current weights, changed by other code, as the new reference."""
