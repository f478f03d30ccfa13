"""Streaming linear discriminant analysis (Hayes & Kanan 2020) on the features of a frozen network."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from experiments.continual.closed_form import LinearDiscriminant
from experiments.networks.networks import CLASSES, classifier_layer
from experiments.networks.objective import Example
from experiments.networks.streams import Batch
from experiments.networks.training import Learner, evaluating
from sal_lightning.layers import collected_inputs


class StreamingLDA(Learner):
    """Collects statistics of the classifier layer's inputs, and classifies with the discriminant in that layer.

    All other weights are unchanged: those of a pre-trained network, or random ones.
    """

    def __init__(self, name: str, net: nn.Module) -> None:
        super().__init__(name, net)
        self.automatic_optimization = False
        self.layer = classifier_layer(net)
        self.discriminant = LinearDiscriminant(self.layer.in_features, CLASSES)

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
