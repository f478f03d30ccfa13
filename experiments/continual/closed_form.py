"""Classifiers in closed form on features that are not trained: of the pixels, or random ones."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from experiments.continual.batches import Batch
from experiments.continual.model import Model

SHRINKAGE = 1e-4
PENALTY = 1e-4
BLOCK = 1024  # rows that are collected before the statistics are updated


class LinearDiscriminant:
    """Running means of the classes and their shared covariance, in double precision.

    k samples of one class in a batch, with mean m, add their scatter around m to the scatter within classes, and
    ``n k / (n + k) (m − μ)(m − μ)ᵀ``, where μ is the mean of the n earlier samples of that class (Chan et al. 1979).
    The result equals that of all samples at once, in any order.
    """

    def __init__(self, features: int, classes: int, shrinkage: float = SHRINKAGE) -> None:
        self.shrinkage = shrinkage
        self.counts = torch.zeros(classes, dtype=torch.double)
        self.means = torch.zeros(classes, features, dtype=torch.double)
        self.scatter = torch.zeros(features, features, dtype=torch.double)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Update the statistics with features (n, d) and their labels (n,)."""
        for label in torch.unique(y).tolist():
            rows = x[y == label].double()
            count, mean = self.counts[label], rows.mean(0)
            centred, shift = rows - mean, mean - self.means[label]
            share = len(rows) / (count + len(rows))
            self.scatter += centred.mT @ centred + count * share * torch.outer(shift, shift)
            self.means[label] += share * shift
            self.counts[label] += len(rows)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight (classes, d) and bias (classes,) of the logits; the bias of a class without samples is -inf.

        ``W = M Λ`` and ``b = −½ diag(M Λ Mᵀ)``, with the means M as rows and ``Λ = ((1 − ε) Σ + ε I)⁻¹``. All classes
        have the same prior.
        """
        covariance = self.scatter / self.counts.sum().clamp(min=1)
        shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * torch.eye(len(covariance), dtype=torch.double)
        weight = torch.linalg.solve(shrunk, self.means.mT).mT
        bias = -(weight * self.means).sum(1) / 2
        return weight, bias.where(self.counts > 0, -torch.inf)


class RidgeRegression:
    """Sums of ``φ φᵀ`` and ``φ yᵀ`` over all samples, from which the regression of targets y on features φ follows.

    The result does not depend on the order of the samples.

    Args:
        features: number of features d.
        outputs: number of targets.
        penalty: λ, relative to the mean square of a feature.
    """

    def __init__(self, features: int, outputs: int, penalty: float = PENALTY) -> None:
        self.penalty = penalty
        self.squares = torch.zeros(features, features, dtype=torch.double)
        self.products = torch.zeros(features, outputs, dtype=torch.double)

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add samples, (n, d) and (n, outputs); a block's sums are in single precision, all others in double."""
        self.squares += features.mT @ features
        self.products += features.mT @ targets

    def solve(self) -> Tensor:
        """Weight (outputs, d): the least squared error plus ``λ tr(Σ φ φᵀ) / d`` times the squared weight."""
        size = len(self.squares)
        damping = max(self.penalty * float(self.squares.trace()) / size, 1e-12)  # before the first sample all are zero
        weight: Tensor = torch.linalg.solve(self.squares + damping * torch.eye(size, dtype=torch.double), self.products)
        return weight.mT


class ClosedForm(Model):
    """A linear classifier on fixed features, computed from statistics of all samples so far; nothing is trained."""

    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.waiting: list[Batch] = []
        self.changed = True

    def features(self, x: Tensor) -> Tensor:
        """The fixed features."""
        raise NotImplementedError

    def update(self, features: Tensor, y: Tensor) -> None:
        """Add samples to the statistics."""
        raise NotImplementedError

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weight (outputs, d) and bias (outputs,) of the classifier."""
        raise NotImplementedError

    def take_in(self) -> None:
        """Add the waiting batches to the statistics."""
        if self.waiting:
            x, y = (torch.cat(column) for column in list(zip(*self.waiting, strict=True))[:2])
            self.update(self.features(x), y)
            self.waiting, self.changed = [], True

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.take_in()
        if self.changed:
            (self.weight, self.bias), self.changed = (part.float() for part in self.solve()), False
        return self.features(x) @ self.weight.mT + self.bias

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.waiting.append(batch)
        if sum(len(b.y) for b in self.waiting) >= BLOCK:
            self.take_in()

    @override
    def configure_optimizers(self) -> Any:
        return []


class StreamingLDA(ClosedForm):
    """Streaming linear discriminant analysis (Hayes & Kanan 2020) on the pixels."""

    def __init__(self, inputs: int, outputs: int, shrinkage: float = SHRINKAGE) -> None:
        super().__init__()
        self.discriminant = LinearDiscriminant(inputs, outputs, shrinkage)

    @override
    def features(self, x: Tensor) -> Tensor:
        return x

    @override
    def update(self, features: Tensor, y: Tensor) -> None:
        self.discriminant.update(features, y)

    @override
    def solve(self) -> tuple[Tensor, Tensor]:
        return self.discriminant.classifier()


class Ridge(ClosedForm):
    """Ridge regression of the labels on random features ``relu(W x)``, as RanPAC (McDonnell et al. 2023) on pixels.

    Args:
        inputs: number of pixels.
        outputs: number of classes.
        width: number of random features.
        penalty: as of ``RidgeRegression``.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 1000, penalty: float = PENALTY) -> None:
        super().__init__()
        self.random: Tensor
        self.register_buffer("random", torch.randn(width, inputs))
        self.regression = RidgeRegression(width + 1, outputs, penalty)

    @override
    def features(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.random.mT)

    @override
    def update(self, features: Tensor, y: Tensor) -> None:
        targets = F.one_hot(y, self.regression.products.shape[1]).float()
        self.regression.update(self.extended(features), targets)

    @staticmethod
    def extended(features: Tensor) -> Tensor:
        """The features, with a constant 1 for the intercept."""
        return torch.cat([features, features.new_ones(len(features), 1)], 1)

    @override
    def solve(self) -> tuple[Tensor, Tensor]:
        weight = self.regression.solve()
        return weight[:, :-1], weight[:, -1]
