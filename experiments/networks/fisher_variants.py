"""Other estimates of the Fisher information for SAL's pull, to compare with SAL's own.

SAL uses the empirical Fisher: squared gradients of single samples for the labels of the data, as sums over rows and
columns. Within ``measured``, a new ``SALCallback`` uses another one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from typing_extensions import override

from experiments.networks.networks import classifier_layer
from sal_lightning import coverage
from sal_lightning.fisher import EVERY, Factors, Fisher
from sal_lightning.pull import Pull
from sal_lightning.rules.input_rule import BETA

FISHERS = ("labels", "drawn", "batch", "elementwise", "kronecker")  # SAL's own is the first
SEED = 1_000_003  # the signs of single samples are drawn with small seeds


class DrawnLabels(Fisher):
    """With labels drawn from the network's predictive distribution: the true Fisher information."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.logits: Tensor | None = None  # of the last forward pass in training
        classifier.register_forward_hook(self._keep)

    @override
    def collect(self, edge: GradientEdge, grad: Tensor, scale: Tensor | None = None, tokens: bool = False) -> None:
        if self.logits is None or self.logits.shape != grad.shape:
            raise ValueError("Expected the last layer of the forward pass to be the classifier, got another.")
        p = self.logits.softmax(-1)
        label = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(SEED + self.age))[:, 0]
        super().collect(edge, (p - F.one_hot(label, p.shape[-1])) / len(p), None, tokens)

    def _keep(self, module: nn.Module, args: Any, out: Tensor) -> None:
        if torch.is_grad_enabled():
            self.logits = out.detach()


class BatchGradient(Fisher):
    """The squared gradient of the batch's mean loss, in which gradients of samples partly cancel."""

    @override
    def _signs(self, shape: Sequence[int]) -> Tensor:
        return torch.ones(tuple(shape), dtype=torch.long)


class Elementwise(Fisher):
    """One value per weight: each tensor is treated as a matrix of one column, so that its row sums are itself."""

    def __init__(self) -> None:
        super().__init__()
        self.biases: Mapping[str, str] = {}  # names of the biases and of their weights

    @override
    def _add(self, names: Iterable[str], found: Sequence[Tensor | None], scale: Tensor | None = None) -> None:
        super()._add(names, [None if g is None else g.flatten() for g in found], scale)

    @override
    def relative(self) -> dict[str, Factors]:
        """Importance of a bias is at least the mean of its row of the weight, as in SAL's own."""
        found = super().relative()
        for bias, weight in self.biases.items():
            if bias in found and weight in found:
                mean = found[weight].rows.view(len(found[bias].rows), -1).mean(1)
                rows = torch.maximum(found[bias].rows, mean)
                found[bias] = Factors(rows, rows.sum()[None])
        return found


class ElementwisePull(Pull):
    """A pull whose Fisher information is ``Elementwise``."""

    def __init__(self, strength: float) -> None:
        super().__init__(strength)
        self.fisher: Elementwise = Elementwise()

    @override
    @torch.no_grad()
    def consolidate(self, known: Mapping[str, Tensor] | None = None) -> None:
        self.fisher.biases = dict(self.biases)
        rows = {name: used for name, used in (known or {}).items() if name in self.parameters}
        each = {name: used.repeat_interleave(self.parameters[name].numel() // len(used)) for name, used in rows.items()}
        super().consolidate(each)


class Kronecker(Fisher):
    """Adds to SAL's own the running sums of ``G Gᵀ`` and ``Gᵀ G`` of each gradient matrix G, over single samples.

    With random signs the mean of ``G Gᵀ`` over a batch is the sum of those of its samples, as that of ``G²`` is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[str, tuple[Tensor, Tensor]] = {}

    @override
    def clear(self) -> None:
        super().clear()
        self.products = {}

    @override
    def update(self) -> None:
        if self.seen:
            keep = BETA**EVERY
            for name, g in self.seen.items():
                if g.dim() > 1:
                    G = g.flatten(1)
                    left, right = self.products.get(name, (torch.zeros(()), torch.zeros(())))
                    self.products[name] = keep * left + G @ G.mT, keep * right + G.mT @ G
        super().update()


class KroneckerPull(Pull):
    """A pull in the eigenbases U, V of ``L = E[G Gᵀ]`` and ``R = E[Gᵀ G]``, with eigenvalues l and r.

    In them the Fisher information is approximated as diagonal, ``l rᵀ / Σl``; as a matrix of all weights it is
    ``L ⊗ R / Σl``, Kronecker-factored with both factors from gradients, as in Shampoo (Gupta et al. 2018). Vectors
    have a diagonal one.
    """

    def __init__(self, strength: float) -> None:
        super().__init__(strength)
        self.fisher: Kronecker = Kronecker()
        self.products: dict[str, tuple[Tensor, Tensor]] = {}  # L and R, summed over consolidations
        self.bases: dict[str, tuple[Tensor, Tensor]] = {}

    @override
    @torch.no_grad()
    def consolidate(self, known: Mapping[str, Tensor] | None = None) -> None:
        past = {name: anchor.rows.sum() for name, anchor in (self.memory or {}).items()}
        super().consolidate(known)
        for name, (left, right) in self.fisher.products.items():
            anchor, used = (self.memory or {})[name], (known or {}).get(name)
            if used is not None:
                left = left * torch.outer(used, used)
            new = anchor.rows.sum() - past.get(name, 0.0)
            scaled = [new * x / x.trace().clamp(min=torch.finfo(x.dtype).tiny) for x in (left, right)]
            before = self.products.get(name, (torch.zeros(()), torch.zeros(())))
            self.products[name] = before[0] + scaled[0], before[1] + scaled[1]
            (rows, U), (columns, V) = (torch.linalg.eigh(x.double()) for x in self.products[name])
            self.bases[name] = U.float(), V.float()
            values = {"rows": rows.clamp(min=0).float(), "columns": columns.clamp(min=0).float()}
            assert self.memory is not None
            self.memory[name] = anchor._replace(**values)

    @override
    def apply(self, moved: Mapping[str, Tensor]) -> None:
        rates = self._rates
        self._rates = {name: c for name, c in rates.items() if name not in self.bases}
        super().apply(moved)
        self._rates = rates
        for name in rates.keys() & self.bases.keys() & self._moving:
            assert self.memory is not None
            (U, V), w = self.bases[name], self.parameters[name].detach()
            back = (self.memory[name].weight - w).flatten(1)
            w += (U @ (rates[name].flatten(1) * (U.mT @ back @ V)) @ V.mT).view_as(w)


def make_pull(kind: str, net: nn.Module, strength: float) -> Pull:
    """A pull whose Fisher information is of this kind, one of FISHERS."""
    if kind in ("elementwise", "kronecker"):
        return ElementwisePull(strength) if kind == "elementwise" else KroneckerPull(strength)
    made = Pull(strength)
    if kind == "drawn":
        made.fisher = DrawnLabels(classifier_layer(net))
    elif kind == "batch":
        made.fisher = BatchGradient()
    return made


@contextmanager
def measured(kind: str, net: nn.Module) -> Iterator[None]:
    """Context manager in which SAL estimates the Fisher information of this network by ``kind``, one of FISHERS.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind not in FISHERS:
        raise ValueError(f"Expected fisher to be one of {FISHERS}, got {kind!r}.")
    with patch.object(coverage, "Pull", partial(make_pull, kind, net)):
        yield
