"""Importance of weights: the diagonal of the Fisher information, factored into sums over rows and columns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from sal_lightning import distributed
from sal_lightning.rules.base import State
from sal_lightning.rules.input_rule import BETA

FIRST, EVERY = (1, 3, 7, 15), 32  # steps of a window in which the Fisher is measured: FIRST, then one in EVERY


class Factors(NamedTuple):
    """Row sums ``rows`` (m,) and column sums ``columns`` (n,) of a matrix of numbers >= 0.

    They represent the matrix ``rows columnsᵀ / sum``, as in Adafactor (Shazeer & Stern 2018): the nearest matrix of
    rank 1 in the generalised Kullback-Leibler divergence. A tensor is reshaped to (first dimension, others).
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Factors":
        """The factors of a tensor, in single precision."""
        X = x.reshape(len(x) if x.dim() else 1, -1).float()
        return cls(X.sum(1), X.sum(0))

    def only(self, rows: Tensor) -> "Factors":
        """The factors with all rows zeroed except those in ``rows``, (m,) of bool."""
        kept = self.rows * rows
        share = kept.sum() / self.rows.sum().clamp(min=torch.finfo(self.rows.dtype).tiny)
        return Factors(kept, self.columns * share)

    def matrix(self) -> Tensor:
        """The matrix that the factors represent, (m, n).

        >>> Factors.of(torch.tensor([[1.0, 2.0], [2.0, 4.0]])).matrix()
        tensor([[1., 2.],
                [2., 4.]])
        """
        total = self.rows.sum().clamp(min=torch.finfo(self.rows.dtype).tiny)
        return torch.outer(self.rows / total, self.columns)


class Fisher:
    """``F = E[g²]``, a running mean over a hundred steps, where g is the gradient of the loss of a single sample.

    In ``remember`` every batch is measured, and counts as a step.

    Per-sample gradients are not computed separately: in some steps the backward pass is run once more from the output
    of the layer that runs last, with a random sign for each sample's gradient there. The expected square of the summed
    gradient is then the sum of the squares. Labels are those of the data (the empirical Fisher).
    """

    def __init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self.failure = ""  # why it cannot be measured
        self.age = 0  # steps since the window began
        self.sums: dict[str, Factors] = {}  # running sums; only their ratios are used
        self.seen: dict[str, Tensor] = {}  # sums of gradients with random signs, of all batches of this step
        self.drawn = 0  # signs, in this step
        self.gap = EVERY  # steps since the last measurement, at most

    def clear(self) -> None:
        """Start a new window."""
        self.age, self.sums = 0, {}

    def window_state(self) -> State:
        """The window as tensors and numbers only."""
        return {"age": self.age, "sums": {name: f._asdict() for name, f in self.sums.items()}}

    def load_window(self, state: State) -> None:
        """Replace the window, on the parameters' device; tensors of another shape are dropped."""
        self.age = state["age"]
        kept = {n: self._placed(n, f) for n, f in state["sums"].items() if n in self.parameters}
        self.sums = {n: f for n, f in kept.items() if f is not None}

    @property
    def due(self) -> bool:
        """Whether the Fisher is measured in this step."""
        return not self.failure and (self.age in FIRST or self.age % EVERY == EVERY - 1)

    def collect(self, edge: GradientEdge, grad: Tensor, scale: Tensor | None = None, tokens: bool = False) -> None:
        """Run the backward pass from an output whose gradient has just been computed.

        Args:
            edge: the gradient edge of the output.
            grad: the gradient of the loss at the output, (samples, ...).
            scale: the factor by which the loss was multiplied.
            tokens: whether every position of all dimensions but the last is a separate sample.
        """
        learn = {name: p for name, p in self.parameters.items() if p.requires_grad}
        if not learn:
            return
        shape = grad.shape[:-1] if tokens else grad.shape[:1]
        signs = self._signs(shape).to(grad)
        if tokens:  # positions without a gradient, such as padded ones, draw none, so that padding changes nothing
            counts = grad.detach().any(-1).flatten().cumsum(0)
            signs = signs.flatten()[(counts - 1).clamp(min=0)]
        signs = signs.reshape(*shape, *(1,) * (grad.dim() - len(shape)))
        try:
            found = torch.autograd.grad(
                edge, list(learn.values()), grad.detach() * signs, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:  # reentrant checkpointing, or compiled graphs with donated buffers
            self.failure = str(error).partition("\n")[0]
            return
        self._add(learn, found, scale)

    def collect_importance(self, values: Tensor) -> None:
        """Run the backward pass from one value per sample, (n,), in place of its loss."""
        learn = {name: p for name, p in self.parameters.items() if p.requires_grad}
        if learn and values.requires_grad:
            signed = values @ self._signs(values.shape).to(values)
            self.gap = 1
            self._add(learn, torch.autograd.grad(signed, list(learn.values()), retain_graph=True, allow_unused=True))

    def _signs(self, shape: Sequence[int]) -> Tensor:
        """Random signs ±1; accumulated batches continue the same random sequence."""
        n, generator = math.prod(shape), torch.Generator().manual_seed(self.age)
        self.drawn += n
        return torch.randint(2, (self.drawn,), generator=generator)[self.drawn - n :].reshape(tuple(shape)) * 2 - 1

    def _add(self, names: Iterable[str], found: Sequence[Tensor | None], scale: Tensor | None = None) -> None:
        for name, g in zip(names, found, strict=True):
            if g is not None:
                g = (g.to_dense() if g.is_sparse else g).detach().float()
                g = g if scale is None else g / scale
                self.seen[name] = self.seen[name] + g if name in self.seen else g

    def update(self) -> None:
        """Update the running sums with this step's gradients."""
        if self.seen:
            keep = BETA**self.gap
            self.sums = {name: Factors(keep * f.rows, keep * f.columns) for name, f in self.sums.items()}
            for name, g in self.seen.items():
                # Gradients that overflowed count as zero.
                new, old = Factors.of(g.square().nan_to_num(0.0, 0.0, 0.0)), self.sums.get(name)
                self.sums[name] = new if old is None else Factors(old.rows + new.rows, old.columns + new.columns)
        self.age += 1
        self.discard_step()

    def discard_step(self) -> None:
        """Drop what was collected in this step."""
        self.seen, self.drawn, self.gap = {}, 0, EVERY

    def relative(self) -> dict[str, Factors]:
        """The factors of each parameter, scaled to a mean of 1 over all weights; empty if nothing was measured.

        A collective: all processes call it and get the mean over processes.
        """
        names = list(self.parameters)
        if distributed.count() > 1:
            known = [self.sums.get(name) or self._zeros(name) for name in names]
            merged = iter(distributed.mean([t for factors in known for t in factors]))
            sums = {name: Factors(next(merged), next(merged)) for name in names}
        else:
            sums = {name: self.sums[name] for name in names if name in self.sums}
        if not sums:
            return {}
        total = torch.stack([f.rows.sum() for f in sums.values()]).sum()
        size = sum(p.numel() for p in self.parameters.values())
        unit = torch.where(total > 0, size / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
        return {name: Factors(f.rows * unit, f.columns * unit) for name, f in sums.items()}

    def _zeros(self, name: str) -> Factors:
        p = self.parameters[name]
        m = len(p) if p.dim() else 1
        return Factors(torch.zeros(m, device=p.device), torch.zeros(p.numel() // max(m, 1), device=p.device))

    def tensors(self) -> list[Tensor]:
        """The tensors kept between steps."""
        return [t for factors in self.sums.values() for t in factors]

    def state_dict(self) -> State:
        """Tensors and numbers only."""
        return self.window_state() | {"seen": dict(self.seen), "drawn": self.drawn}

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state, on the parameters' device; tensors of another shape are dropped."""
        self.load_window(state)
        like = {n: p for n, p in self.parameters.items() if n in state["seen"] and state["seen"][n].shape == p.shape}
        self.seen = {n: state["seen"][n].to(p.device) for n, p in like.items()}
        self.drawn = state["drawn"]

    def _placed(self, name: str, state: Mapping[str, Tensor]) -> Factors | None:
        like = self._zeros(name)
        found = Factors(*(state[key].to(like.rows.device) for key in Factors._fields))
        return found if all(a.shape == b.shape for a, b in zip(found, like, strict=True)) else None
