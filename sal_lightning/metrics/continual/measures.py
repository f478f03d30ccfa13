"""Measures of continual learning: learning, retention, and the lowest accuracy in between.

``R[i, j]`` is the accuracy in [0, 1] on task ``j`` after training on task ``i``, tasks counted from 0. The functions
take ``R`` of shape (T, T), any device and floating dtype, and return a scalar. ``k`` is the number of tasks reached:
row ``k − 1`` is the last one with a value, the current state. Later tasks are left out, so every measure can be
computed during the stream. NaN marks values that were not measured; measures that depend on one are NaN.
"""

import torch
from torch import Tensor


def reached(R: Tensor) -> Tensor:
    """The part of ``R`` for the tasks reached: (k, k), or (1, 1) of NaN before any.

    >>> reached(torch.tensor([[0.9, 0.1], [torch.nan, torch.nan]]))
    tensor([[0.9000]])
    """
    rows = (~R.isnan()).any(dim=1).nonzero()
    k = int(rows[-1]) + 1 if len(rows) else 1
    return R[:k, :k]


def average_accuracy(R: Tensor) -> Tensor:
    """``1/k Σ_j R[k−1, j]`` in [0, 1], from Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).

    >>> average_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.9]]))
    tensor(0.7000)
    """
    return reached(R)[-1].mean()


def worst_accuracy(R: Tensor) -> Tensor:
    """``min_j R[k−1, j]`` in [0, 1]: the current accuracy on the worst task.

    >>> worst_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.9]]))
    tensor(0.5000)
    """
    return reached(R)[-1].min()


def learning_accuracy(R: Tensor) -> Tensor:
    """``1/k Σ_j R[j, j]`` in [0, 1], each task after its own training, from Riemer et al. 2019 (arXiv 1810.11910).

    >>> learning_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.8]]))
    tensor(0.8500)
    """
    return reached(R).diagonal().mean()


def backward_transfer(R: Tensor) -> Tensor:
    """``1/(k−1) Σ_{j<k−1} (R[k−1, j] − R[j, j])`` in [−1, 1], from Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).

    Negative if later tasks reduced the accuracy on earlier ones. NaN for a single task.

    >>> backward_transfer(torch.tensor([[0.9, 0.1], [0.5, 0.9]]))
    tensor(-0.4000)
    """
    R = reached(R)
    return (R[-1] - R.diagonal())[:-1].mean()


def forward_transfer(R: Tensor, start: Tensor) -> Tensor:
    """``1/(k−1) Σ_{0<j<k} (R[j−1, j] − start[j])`` in [−1, 1], from Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).

    Positive if earlier tasks help with one not yet trained. ``start``, (T,), is the accuracy before any training.
    NaN for a single task.

    >>> forward_transfer(torch.tensor([[0.9, 0.6], [0.5, 0.9]]), torch.tensor([0.5, 0.5]))
    tensor(0.1000)
    """
    R = reached(R)
    return (R.diagonal(1) - start[1 : len(R)]).mean()


def forgetting(R: Tensor) -> Tensor:
    """``1/(k−1) Σ_{j<k−1} (max_{j≤l<k−1} R[l, j] − R[k−1, j])`` in [−1, 1], from Chaudhry et al. 2018.

    The drop of each task below its best accuracy since its training; negative if it is above. NaN for a single task.
    In the paper ``l`` starts at 0 (arXiv 1801.10112), which differs only for a task that was best before its training.

    >>> forgetting(torch.tensor([[0.8, 0.1, 0.1], [0.9, 0.9, 0.1], [0.5, 0.9, 0.9]]))
    tensor(0.2000)
    """
    R = reached(R)
    best = [float(R[j:-1, j].max()) for j in range(len(R) - 1)]
    return (R.new_tensor(best) - R[-1, :-1]).mean()


def min_accuracy(R: Tensor, lowest: Tensor) -> Tensor:
    """``1/(k−1) Σ_{j<k−1} lowest[j]`` in [0, 1], the min-ACC of De Lange et al. 2023 (arXiv 2205.13452).

    ``lowest``, (T,), is the lowest accuracy on each task at any evaluation after its own training ended, including
    those during a later task: a temporary drop is visible only in this measure. NaN for a single task.

    >>> min_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.9]]), torch.tensor([0.2, torch.nan]))
    tensor(0.2000)
    """
    return lowest[: len(reached(R)) - 1].mean()


def worst_case_accuracy(R: Tensor, lowest: Tensor) -> Tensor:
    """``R[k−1, k−1]/k + (1 − 1/k) min-ACC`` in [0, 1], the WC-ACC of De Lange et al. 2023 (arXiv 2205.13452).

    The trade-off between learning the last task and retaining the earlier ones: ``R[0, 0]`` for a single task.

    >>> worst_case_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.8]]), torch.tensor([0.2, torch.nan]))
    tensor(0.5000)
    """
    R = reached(R)
    return torch.cat([lowest[: len(R) - 1].to(R), R[-1, -1:]]).mean()
