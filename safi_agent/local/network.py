"""The network on the encoder's vectors: features of a question and its answer, a shared layer, one head per value."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from safi_agent.ledger import SCORES

INPUTS = 128  # principal components of the features
HIDDEN = 64
DROPOUT = 0.2  # of the inputs
LEAST_SCALE = 1e-3  # of a feature, so that a constant one stays near 0


def pair_features(question: Tensor, answer: Tensor) -> Tensor:
    """Both vectors, their product and their absolute difference, side by side: (n, 4 · width).

    Args:
        question: vectors of the questions, (n, width).
        answer: vectors of the answers, (n, width).
    """
    return torch.cat([question, answer, question * answer, (question - answer).abs()], 1)


class Network(nn.Module):
    """A shared linear layer with GELU, then one linear head per value with a logit for each of the four scores.

    Its inputs are the principal components of the features of the first training, which stay as they are.

    Args:
        features: number of features.
        heads: number of values.
        inputs: number of principal components.
        hidden: units of the shared layer.
    """

    def __init__(self, features: int, heads: int, inputs: int = INPUTS, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.mean: Tensor
        self.projection: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("projection", torch.zeros(features, inputs))
        self.shared = nn.Linear(inputs, hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, len(SCORES)) for _ in range(heads))

    def fit_projection(self, features: Tensor) -> None:
        """Set the principal components, to those of these features (n, features), each scaled to deviation 1 before.

        The components are scaled together, to a mean variance of 1. Where there are fewer rows than components, the
        others are 0.
        """
        scale = features.std(0, correction=0).clamp(min=LEAST_SCALE)
        standard = (features - features.mean(0)) / scale
        _, _, directions = torch.linalg.svd(standard, full_matrices=False)
        directions = directions[: self.projection.shape[1]].mT
        size = (standard @ directions).square().mean().sqrt().clamp(min=LEAST_SCALE)
        self.mean.copy_(features.mean(0))
        self.projection.zero_()
        self.projection[:, : directions.shape[1]] = directions / scale[:, None] / size

    def project(self, features: Tensor) -> Tensor:
        """The inputs of the shared layer, (n, inputs)."""
        return (features - self.mean) @ self.projection

    def add_heads(self, count: int) -> None:
        """Add heads for new values; each begins as the mean of those that are there."""
        for _ in range(count):
            head = nn.Linear(self.shared.out_features, len(SCORES))
            if len(self.heads):
                with torch.no_grad():
                    for name, parameter in head.named_parameters():
                        others = [other.get_parameter(name) for other in self.heads]
                        parameter.copy_(torch.stack(others).mean(0))
            self.heads.append(head)

    def _hidden(self, inputs: Tensor) -> Tensor:
        return F.gelu(self.shared(F.dropout(inputs, DROPOUT, self.training)))

    @override
    def forward(self, inputs: Tensor, heads: Tensor) -> Tensor:
        """Logits of the four scores, (n, 4).

        Only heads that are asked for run, so that the others have no gradient and an optimizer leaves them alone.

        Args:
            inputs: from ``project``, (n, inputs).
            heads: the number of the head that judges each row, (n,).
        """
        hidden = self._hidden(inputs)
        logits = hidden.new_zeros(len(inputs), len(SCORES))
        for head in heads.unique().tolist():
            rows = (heads == head).nonzero()[:, 0]
            logits = logits.index_copy(0, rows, self.heads[head](hidden[rows]))
        return logits

    def all_heads(self, inputs: Tensor) -> Tensor:
        """Logits of all heads, (n, heads, 4)."""
        hidden = self._hidden(inputs)
        return torch.stack([head(hidden) for head in self.heads], 1)
