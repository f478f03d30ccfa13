"""What every rule is: one linear question, "what part of this change is held back?", to gradient and update alike."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sal_lightning import distributed
from sal_lightning.distributed import local
from sal_lightning.rules.scores import Scores, bands

State = dict[str, Any]


class Rule(ABC):
    """How the stability of some parameters is measured, and how a change to them is held back."""

    grain: str  # the word for it in ``coverage()``
    restores = True  # whether the update is held back too, not only the gradient

    def __init__(self, name: str, parameters: dict[str, nn.Parameter]) -> None:
        self.name, self.parameters = name, parameters
        self.alone = False  # whether nobody restores after the step, so that the gradient is all there is
        # What is held; a consolidation makes a new one, so that a provisional one can be taken back.
        self.memory: Any = None
        # Whether somebody else moved the weights since they were last put back; a tensor: no device is waited for.
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

    @abstractmethod
    def update(self, unit: float = 1.0) -> None:
        """Take this step's inputs and gradients (still whole, ``unit`` times their size) into the window."""

    @abstractmethod
    def consolidate(self) -> None:
        """Add the window to what is held."""

    @abstractmethod
    def clear(self) -> None:
        """Begin a new window."""

    @abstractmethod
    def stabilities(self) -> list[Scores]:
        """What is held how firmly; the numbers of weights that they stand for sum to ``trained()``."""

    def bands(self) -> Tensor:
        """Weights that are (protected, neutral, volatile): counts that sum to ``trained()``, which must not be 0."""
        return torch.stack([bands(*scores) for scores in self.stabilities()]).sum(0)

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

    @property
    def learns(self) -> bool:
        """Whether any of the parameters is being trained now."""
        return any(p.requires_grad for p in self.parameters.values())

    def version_of_weights(self) -> int:
        """Changes with every change of the weights, but for those made through ``.data``."""
        return sum(p._version for p in self.parameters.values())

    def weights_exchanged(self, versions: int) -> None:  # noqa: B027
        """The optimizer itself put other weights in place, which changed their version by so much."""

    def weights(self) -> list[Tensor]:
        """The parameters' values, as far as they live in this process; the same memory."""
        return [local(p.detach()) for p in self.parameters.values()]

    def gradients(self) -> list[Tensor | None]:
        """Likewise, of each parameter that has one."""
        return [None if p.grad is None else local(p.grad) for p in self.parameters.values()]

    def numel(self) -> int:
        """Weights under this rule."""
        return sum(p.numel() for p in self.parameters.values())

    def trained(self) -> int:
        """Those of them that are being trained now."""
        return sum(p.numel() for p in self.parameters.values() if p.requires_grad)

    def drift(self) -> Tensor | None:
        """How far what is held has moved, as (moved², size²); None where the rule keeps no reference."""
        return None

    def discard_step(self) -> None:  # noqa: B027  (a rule that gathers nothing has nothing to drop)
        """Drop what was gathered in a step that will not be observed."""

    @property
    def due(self) -> bool:
        """Whether the window wants the inputs of this step."""
        return False

    def window_tensors(self) -> list[Tensor]:
        """What of this process's window is averaged with the others'."""
        return []

    def set_window(self, tensors: Sequence[Tensor]) -> None:  # noqa: B027
        """Put the averages in its place."""

    def adapt_hold(self) -> None:  # noqa: B027
        """What is held follows what the window shows that present data needs."""

    def tensors(self) -> list[Tensor]:
        """Everything this rule keeps between steps, for ``memory()``."""
        return list(_tensors(self.state_dict()))

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

    def hold_back(self, G: Sequence[Tensor]) -> None:
        """``G ← G − held(G)``, in place."""
        for g, h in zip(G, self.held(G), strict=True):
            g.sub_(h)

    @property
    def settles(self) -> bool:
        """Whether the next ``put_back`` also puts back what was left for later."""
        return False

    def record_weights(self) -> None:  # noqa: B027
        """The weights now are what the step left."""

    def accept_weights(self) -> None:  # noqa: B027
        """Take the weights as they are: somebody else has moved them."""

    def settle(self) -> None:  # noqa: B027
        """Put back now what was to be put back later."""

    def put_back(self, W: Sequence[Tensor | None], W0: Sequence[Tensor]) -> None:
        """``W ← W − held(W − W₀)``, in place; None is a weight that must not move. ``W₀`` may be used up."""
        D = [w0.zero_() if w is None else torch.sub(w, w0, out=w0) for w, w0 in zip(W, W0, strict=True)]
        for w, h in zip(W, self.held(D), strict=True):
            if w is not None:
                w.sub_(h)


def grown(x: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """``x`` with zeros where a larger shape is new; itself where it has that shape.

    Raises:
        ValueError: ``what`` had more than this.
    """
    old = tuple(x.shape)
    if old == tuple(shape):
        return x
    if len(old) != len(shape) or any(a > b for a, b in zip(old, shape, strict=True)):
        raise ValueError(
            f"Expected {what} to have at least the size {old} that it had when the state was saved, got {tuple(shape)}."
        )
    larger = x.new_zeros(tuple(shape))
    larger[tuple(slice(n) for n in old)] = x
    return larger


def share_windows(rules: Sequence[Rule]) -> None:
    """Give all processes one window: the mean of what they saw."""
    if distributed.count() > 1:
        windows = [rule.window_tensors() for rule in rules]
        merged = iter(distributed.mean([t for window in windows for t in window]))
        for rule, window in zip(rules, windows, strict=True):
            rule.set_window([next(merged) for _ in window])


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
