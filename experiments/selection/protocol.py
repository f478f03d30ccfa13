"""One run: a network with dropout answers noisy pictures many times; ways to make one answer and a confidence of them.

Letters: ``p`` (pictures, T, classes) the probabilities of T answers under dropout.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.continual.data import Arrays
from experiments.continual.model import MLP
from sal_lightning import emergence_select

DROPOUT, BATCH, T = 0.5, 128, 32
PART = 500  # pictures that are answered at once


class Answer(NamedTuple):
    """Of each picture."""

    guess: Tensor  # the class
    confidence: Tensor  # higher is surer


def trained(arrays: Arrays, steps: int, seed: int) -> MLP:
    """The published network with dropout, trained on pictures without noise."""
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
    """Probabilities without dropout (pictures, classes), and of so many answers under it (pictures, times, classes)."""
    alone = net.eval()(x).softmax(-1)
    net.train()
    parts = [net(part.repeat(times, 1)).softmax(-1).view(times, len(part), -1) for part in torch.split(x, PART)]
    return alone, torch.cat(parts, 1).transpose(0, 1)


def noisy(x: Tensor, size: float, seed: int) -> Tensor:
    """Pictures with Gaussian noise of this standard deviation on pixels in [0, 1]."""
    return x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def ways(alone: Tensor, p: Tensor) -> dict[str, Answer]:
    """The answers of each way, by name.

    *single*: the first answer under dropout. *max-softmax* (Hendrycks & Gimpel 2017): the network without dropout.
    *mean* (Gal & Ghahramani 2016): the mean of all. *vote*: the class that most name, as sure as their share.
    *emergent*: the answer that most others resonate with, as sure as their share; *emergent, resonance*: the same, as
    sure as it is like all the others.
    """
    votes = F.one_hot(p.argmax(-1), p.shape[-1]).float().mean(1)
    # A unit vector of each answer: the cosine of two is the overlap of their distributions (Bhattacharyya 1943).
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
    """The greatest of these shares (pictures, classes), and how great it is."""
    return Answer(p.argmax(1), p.amax(1))


def risk_coverage(wrong: Tensor, confidence: Tensor) -> float:
    """Area under the risk-coverage curve: the mean, over k, of the error among the k surest (Geifman et al. 2019).

    Of those that are as sure as each other none comes first: each counts as their mean.

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
