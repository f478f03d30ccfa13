"""Streaming linear discriminant analysis (Hayes & Kanan 2020) on the features of a frozen network."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from experiments.networks.networks import CLASSES, classifier_layer
from experiments.networks.objective import Example
from experiments.networks.streams import Batch
from experiments.networks.training import Learner, evaluating
from sal_lightning.layers import collected_inputs

SHRINKAGE = 1e-4


class LinearDiscriminant:
    """Running means of the classes and their shared covariance, in double precision.

    k samples of one class in a batch, with mean m, add their scatter around m to the scatter within classes, and
    ``n k / (n + k) (m − μ)(m − μ)ᵀ``, where μ is the mean of the n earlier samples of that class (Chan et al. 1979).
    The result equals that of all samples at once, in any order.
    """

    def __init__(self, features: int, classes: int = CLASSES, shrinkage: float = SHRINKAGE) -> None:
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


class StreamingLDA(Learner):
    """Collects statistics of the classifier layer's inputs, and classifies with the discriminant in that layer.

    All other weights are unchanged: those of a pre-trained network, or random ones.
    """

    def __init__(self, name: str, net: nn.Module) -> None:
        super().__init__(name, net)
        self.automatic_optimization = False
        self.layer = classifier_layer(net)
        self.discriminant = LinearDiscriminant(self.layer.in_features)

    @override
    def training_step(self, batch: Example, batch_idx: int) -> None:  # type: ignore[override]
        self.discriminant.update(self.features(batch), batch.target)

    def features(self, batch: Example) -> Tensor:
        """The input of the classifier layer, in evaluation mode."""
        with collected_inputs(self.layer) as found, evaluating(self.net):
            self.net(*batch.given)
        return found[0]

    @override
    def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
        return []

    @override
    def score(self, tests: Batch) -> float:
        weight, bias = self.discriminant.classifier()
        with torch.no_grad():
            self.layer.weight.copy_(weight)
            self.layer.bias.copy_(bias)
        return super().score(tests)
