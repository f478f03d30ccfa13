"""The network on the encoder's vectors: features of question and answer, a shared layer, one head per value."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from safi_agent.ledger import SCORES

INPUTS = 128  # principal components of the features
BETWEEN = 0.3  # weight of the score among those that do not break the value
LEAST_SCALE = 1e-3  # of a feature, so that a constant one stays near 0


def pair_features(question: Tensor, answer: Tensor) -> Tensor:
    """Both vectors, their product and their absolute difference, side by side: (n, 4 · width).

    Args:
        question: vectors of the questions, (n, width).
        answer: vectors of the answers, (n, width).
    """
    return torch.cat([question, answer, question * answer, (question - answer).abs()], 1)


class Network(nn.Module):
    """The logits of the four scores: those of a shared linear layer plus those of the value's own.

    With weight decay on both, a value with few examples is judged as the others are, and one with many as its own
    examples say. The inputs are the principal components of the features of the first training, which stay as they are.

    Args:
        features: number of features.
        heads: number of values.
        inputs: number of principal components.
    """

    def __init__(self, features: int, heads: int, inputs: int = INPUTS) -> None:
        super().__init__()
        self.mean: Tensor
        self.projection: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("projection", torch.zeros(features, inputs))
        self.shared = _zero(nn.Linear(inputs, len(SCORES)))
        self.heads = nn.ModuleList()
        self.add_heads(heads)

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
        """Add heads for new values; each begins at zero, so that it judges as the shared layer does."""
        self.heads.extend(_zero(nn.Linear(self.shared.in_features, len(SCORES))) for _ in range(count))

    @override
    def forward(self, inputs: Tensor, heads: Tensor) -> Tensor:
        """Logits of the four scores, (n, 4).

        Only heads that are asked for run, so that the others have no gradient and an optimizer leaves them alone.

        Args:
            inputs: from ``project``, (n, inputs).
            heads: the number of the head that judges each row, (n,).
        """
        own = inputs.new_zeros(len(inputs), len(SCORES))
        for head in sorted(set(heads.tolist())):
            rows = (heads == head).nonzero()[:, 0]
            own = own.index_copy(0, rows, self.heads[head](inputs[rows]))
        shared: Tensor = self.shared(inputs)
        return shared + own

    def all_heads(self, inputs: Tensor) -> Tensor:
        """Logits of all heads, (n, heads, 4)."""
        shared: Tensor = self.shared(inputs)
        return shared[:, None] + torch.stack([head(inputs) for head in self.heads], 1)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def loss(logits: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """Log loss of broken or not, plus ``BETWEEN`` times the cross-entropy of the other three scores: a weighted mean.

    The two add up to the cross-entropy of all four scores at a factor of 1. Broken or not counts for more, since the
    finding's confidence is about it.

    Args:
        logits: of the four scores, (n, 4).
        scores: the index of the score, (n,).
        weights: of the examples, (n,).
    """
    logs, broken = logits.log_softmax(1), scores == 0
    side = -torch.where(broken, logs[:, 0], logs[:, 1:].logsumexp(1))
    between = F.cross_entropy(logits[:, 1:], (scores - 1).clamp(min=0), reduction="none")
    return ((side + BETWEEN * between * ~broken) * weights).sum() / weights.sum()
