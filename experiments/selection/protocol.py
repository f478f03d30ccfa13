"""One run: many predictions of a network with dropout for noisy images, combined to one with a confidence.

Notation: ``p`` (pictures, T, classes) the probabilities of T predictions under dropout.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.continual.data import Arrays
from experiments.continual.model import MLP
from sal_lightning import emergence_select

DROPOUT, BATCH, T = 0.5, 128, 32
PART = 500  # batch size for images


class Answer(NamedTuple):
    """A prediction for each image."""

    guess: Tensor  # the class
    confidence: Tensor  # higher is surer


def trained(arrays: Arrays, steps: int, seed: int) -> MLP:
    """The published network with dropout, trained on images without noise."""
    torch.manual_seed(seed)
    net = MLP(arrays.train_x.shape[1], 10, dropout=DROPOUT)
    optimizer, generator = torch.optim.Adam(net.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(arrays.train_x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(arrays.train_x[rows]), arrays.train_y[rows]))
        optimizer.step()
    return net


@torch.no_grad()
def answers(net: MLP, x: Tensor, times: int = T) -> tuple[Tensor, Tensor]:
    """Probabilities without dropout (pictures, classes), and with it, repeatedly (pictures, times, classes)."""
    alone = net.eval()(x).softmax(-1)
    net.train()
    parts = [net(part.repeat(times, 1)).softmax(-1).view(times, len(part), -1) for part in torch.split(x, PART)]
    return alone, torch.cat(parts, 1).transpose(0, 1)


def noisy(x: Tensor, size: float, seed: int) -> Tensor:
    """Add Gaussian noise of this standard deviation to pixels in [0, 1]."""
    return x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def ways(alone: Tensor, p: Tensor) -> dict[str, Answer]:
    """The predictions of each method, by name.

    *single*: the first prediction under dropout. *max-softmax* (Hendrycks & Gimpel 2017): the network without dropout.
    *mean* (Gal & Ghahramani 2016): the mean of all. *vote*: the most frequent class, with its share as confidence.
    *emergent*: the choice of ``emergence_select``, with its share as confidence; *emergent, resonance*: the same, with
    the resonance as confidence.
    """
    votes = F.one_hot(p.argmax(-1), p.shape[-1]).float().mean(1)
    # Unit vectors whose cosine similarity is the overlap of two distributions (Bhattacharyya 1943).
    found = [emergence_select(candidates) for candidates in p.sqrt()]
    chosen = p[torch.arange(len(p)), torch.tensor([f.chosen for f in found])].argmax(1)
    return {
        "single": surest(p[:, 0]),
        "max-softmax": surest(alone),
        "mean": surest(p.mean(1)),
        "vote": surest(votes),
        "emergent": Answer(chosen, torch.tensor([f.share for f in found])),
        "emergent, resonance": Answer(chosen, torch.tensor([f.resonance for f in found])),
    }


def surest(p: Tensor) -> Answer:
    """The class with the largest share (pictures, classes), and this share as confidence."""
    return Answer(p.argmax(1), p.amax(1))


def risk_coverage(wrong: Tensor, confidence: Tensor) -> float:
    """Area under the risk-coverage curve: the mean, over k, of the error among the k surest (Geifman et al. 2019).

    Samples of equal confidence count with their mean error.

    >>> risk_coverage(torch.tensor([0.0, 1.0]), torch.tensor([0.9, 0.1]))
    0.25
    >>> risk_coverage(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))
    0.5
    """
    _, group = torch.unique(-confidence.double(), return_inverse=True)
    size = torch.bincount(group).double()
    rate = torch.zeros_like(size).index_add_(0, group, wrong.double()) / size
    expected = rate[group.sort().values]
    return float((expected.cumsum(0) / torch.arange(1, len(wrong) + 1)).mean())


def measured(answer: Answer, y: Tensor) -> dict[str, float]:
    """Accuracy, and the area under the risk-coverage curve."""
    wrong = (answer.guess != y).double()
    return {"accuracy": 1 - float(wrong.mean()), "risk": risk_coverage(wrong, answer.confidence)}
