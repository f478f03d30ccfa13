"""The measures of continual learning: what was learned, what was kept, and how low it fell on the way.

``R[i, j]`` is the accuracy in [0, 1] on task ``j`` after training on task ``i``, tasks counted from 0. The functions
take ``R`` of shape (T, T), any device and floating dtype, and answer with a scalar. ``k`` tasks have been reached: the
last row with anything in it is row ``k − 1``, and it is *now*. Tasks beyond are left out, so every measure can be read
in mid-stream. NaN is what was not measured, and what needs it is NaN too.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

_ROUNDING = 1e-5  # a mean of ones may come out this much above 1


def reached(R: Tensor) -> Tensor:
    """The part of ``R`` that counts: (k, k), or one NaN while there is nothing.

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
    """``min_j R[k−1, j]`` in [0, 1]: the task that fares worst now.

    >>> worst_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.9]]))
    tensor(0.5000)
    """
    return reached(R)[-1].min()


def learning_accuracy(R: Tensor) -> Tensor:
    """``1/k Σ_j R[j, j]`` in [0, 1], each task when just learned, from Riemer et al. 2019 (arXiv 1810.11910).

    >>> learning_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.8]]))
    tensor(0.8500)
    """
    return reached(R).diagonal().mean()


def backward_transfer(R: Tensor) -> Tensor:
    """``1/(k−1) Σ_{j<k−1} (R[k−1, j] − R[j, j])`` in [−1, 1], from Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).

    Below 0 what came later did harm. NaN for a single task.

    >>> backward_transfer(torch.tensor([[0.9, 0.1], [0.5, 0.9]]))
    tensor(-0.4000)
    """
    R = reached(R)
    return (R[-1] - R.diagonal())[:-1].mean()


def forward_transfer(R: Tensor, start: Tensor) -> Tensor:
    """``1/(k−1) Σ_{0<j<k} (R[j−1, j] − start[j])`` in [−1, 1], from Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).

    Above 0 what came before helps with a task not yet trained. ``start``, (T,), is the accuracy before any training.
    NaN for a single task.

    >>> forward_transfer(torch.tensor([[0.9, 0.6], [0.5, 0.9]]), torch.tensor([0.5, 0.5]))
    tensor(0.1000)
    """
    R = reached(R)
    return (R.diagonal(1) - start[1 : len(R)]).mean()


def forgetting(R: Tensor) -> Tensor:
    """``1/(k−1) Σ_{j<k−1} (max_{j≤l<k−1} R[l, j] − R[k−1, j])`` in [−1, 1], from Chaudhry et al. 2018.

    How far each task is below its best since it was learned; below 0 it is better than ever. NaN for a single task.
    Their ``l`` starts at 0 (arXiv 1801.10112): the same, unless a task was never better than before its own training.

    >>> forgetting(torch.tensor([[0.8, 0.1, 0.1], [0.9, 0.9, 0.1], [0.5, 0.9, 0.9]]))
    tensor(0.2000)
    """
    R = reached(R)
    best = [float(R[j:-1, j].max()) for j in range(len(R) - 1)]
    return (R.new_tensor(best) - R[-1, :-1]).mean()


def min_accuracy(R: Tensor, lowest: Tensor) -> Tensor:
    """``1/(k−1) Σ_{j<k−1} lowest[j]`` in [0, 1], the min-ACC of De Lange et al. 2023 (arXiv 2205.13452).

    ``lowest``, (T,), is the least accuracy on each task at any evaluation after its own training ended, also those in
    the midst of a later task: what recovers before that ends shows here alone. NaN for a single task.

    >>> min_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.9]]), torch.tensor([0.2, torch.nan]))
    tensor(0.2000)
    """
    return lowest[: len(reached(R)) - 1].mean()


def worst_case_accuracy(R: Tensor, lowest: Tensor) -> Tensor:
    """``R[k−1, k−1]/k + (1 − 1/k) min-ACC`` in [0, 1], the WC-ACC of De Lange et al. 2023 (arXiv 2205.13452).

    The trade-off of learning the last task and never losing the earlier ones: ``R[0, 0]`` for a single task.

    >>> worst_case_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.8]]), torch.tensor([0.2, torch.nan]))
    tensor(0.5000)
    """
    R = reached(R)
    return torch.cat([lowest[: len(R) - 1].to(R), R[-1, -1:]]).mean()


class ContinualMetric(Metric):
    """Remembers the accuracy on every task of a stream; a subclass says in ``compute`` what to make of it.

    All subclasses keep the same states, so a ``MetricCollection`` of them updates one. The states are part of the
    ``state_dict`` and are the same in every process, which are all to be given the same accuracies.

    Lightning resets a metric that is itself given to ``self.log`` at the end of an epoch; give it ``compute()``.

    Args:
        tasks: how many tasks the stream has, T ≥ 1.
        kwargs: as of any ``torchmetrics.Metric``.

    Raises:
        ValueError: if ``tasks`` is below 1.
    """

    full_state_update = True  # the last accuracies given for a task replace the ones before
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    # Infinite where nothing was measured: torchmetrics never merges states with a NaN in them.
    _R: Tensor
    _lowest: Tensor
    _start: Tensor

    def __init__(self, tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if tasks < 1:
            raise ValueError(f"Expected tasks to be at least 1, got {tasks}.")
        for name, shape in {"_R": (tasks, tasks), "_lowest": (tasks,), "_start": (tasks,)}.items():
            self.add_state(name, torch.full(shape, math.inf), dist_reduce_fx="min", persistent=True)

    @property
    def R(self) -> Tensor:
        """Accuracy on task j after task i, (T, T), NaN where not measured."""
        return _or_nan(self._R)

    @property
    def lowest(self) -> Tensor:
        """The least accuracy on each task since its own training ended, (T,), NaN where not measured."""
        return _or_nan(self._lowest)

    @property
    def start(self) -> Tensor:
        """Accuracy on each task before any training, (T,), NaN where not measured."""
        return _or_nan(self._start)

    def update(self, accuracy: Tensor, task: int) -> None:
        """Tell the accuracy on the tasks now, as often as it is measured.

        Args:
            accuracy: (T,) in [0, 1], or shorter for the first few tasks; NaN for a task that was not measured.
            task: the one being trained on or just finished, from 0, never an earlier one than before; −1 before any
                training. The last accuracies given for a task count as those after it.

        Raises:
            ValueError: if ``accuracy`` has another shape or is outside [0, 1], as percentages are, or ``task`` is
                out of range or out of order. Nothing has been remembered then.
        """
        accuracy = self._checked(accuracy.detach().to(self._R), task)
        tasks = torch.arange(len(accuracy), device=accuracy.device)
        given = accuracy.isfinite()
        # New tensors, as those made in inference mode cannot be changed outside it.
        self._R = torch.where(given & (tasks == task)[:, None], accuracy, self._R)
        self._lowest = torch.where(given & (tasks < task), accuracy.minimum(self._lowest), self._lowest)
        self._start = torch.where(given & (task < 0), accuracy, self._start)

    def _checked(self, accuracy: Tensor, task: int) -> Tensor:
        """The accuracies, (T,), infinite where not given."""
        tasks = len(self._R)
        if task not in range(-1, tasks):
            raise ValueError(f"Expected task to be from -1 (before any training) to {tasks - 1}, got {task}.")
        rows = self._R.isfinite().any(dim=1).nonzero()
        if len(rows) and task < rows[-1]:
            raise ValueError(f"Expected task to be {int(rows[-1])} or later: tasks come in order, got {task}.")
        if accuracy.ndim != 1 or not 1 <= len(accuracy) <= tasks:
            raise ValueError(f"Expected accuracy to have shape (1,) to ({tasks},), got {tuple(accuracy.shape)}.")
        if ((accuracy < 0) | (accuracy > 1 + _ROUNDING)).any():
            raise ValueError(f"Expected accuracy to be in [0, 1], or NaN where not measured, got {accuracy.tolist()}.")
        known = accuracy.clamp(max=1).nan_to_num(nan=math.inf)
        return torch.cat([known, known.new_full((tasks - len(known),), math.inf)])


class AverageAccuracy(ContinualMetric):
    """Mean accuracy over the tasks reached, now: ``average_accuracy(R)``.

    >>> accuracy = AverageAccuracy(tasks=3)
    >>> accuracy.update(torch.tensor([0.9, 0.1, 0.1]), task=0)
    >>> accuracy.update(torch.tensor([0.5, 0.9, 0.1]), task=1)
    >>> accuracy.compute()
    tensor(0.7000)
    """

    @override
    def compute(self) -> Tensor:
        return average_accuracy(self.R)


class WorstAccuracy(ContinualMetric):
    """Accuracy now on the task that fares worst: ``worst_accuracy(R)``."""

    @override
    def compute(self) -> Tensor:
        return worst_accuracy(self.R)


class LearningAccuracy(ContinualMetric):
    """Mean accuracy on each task when just learned: ``learning_accuracy(R)``."""

    @override
    def compute(self) -> Tensor:
        return learning_accuracy(self.R)


class BackwardTransfer(ContinualMetric):
    """What later tasks did to earlier ones, below 0 for harm: ``backward_transfer(R)``."""

    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return backward_transfer(self.R)


class ForwardTransfer(ContinualMetric):
    """What earlier tasks did for those not yet trained: ``forward_transfer(R, start)``.

    It needs ``update(accuracy, task=-1)`` before any training, and accuracies on tasks to come.
    """

    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return forward_transfer(self.R, self.start)


class Forgetting(ContinualMetric):
    """How far earlier tasks are below their best: ``forgetting(R)``."""

    higher_is_better = False
    plot_lower_bound = -1.0

    @override
    def compute(self) -> Tensor:
        return forgetting(self.R)


class MinAccuracy(ContinualMetric):
    """How low earlier tasks ever fell since each ended: ``min_accuracy(R, lowest)``.

    Update it at every step of training, or as often as can be afforded: a dip that was not measured does not count.
    """

    @override
    def compute(self) -> Tensor:
        return min_accuracy(self.R, self.lowest)


class WorstCaseAccuracy(ContinualMetric):
    """The last task as it is and earlier ones as low as they fell: ``worst_case_accuracy(R, lowest)``."""

    @override
    def compute(self) -> Tensor:
        return worst_case_accuracy(self.R, self.lowest)


def _or_nan(state: Tensor) -> Tensor:
    return torch.where(state.isfinite(), state, torch.nan)
