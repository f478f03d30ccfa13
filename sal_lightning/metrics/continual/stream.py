"""Base class of the measures of continual learning: the accuracy on each task after each task."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_ROUNDING = 1e-5  # tolerance above 1, for rounding in means


class ContinualMetric(Metric):
    """Stores the accuracy on every task of a stream; subclasses compute one measure from it in ``compute``.

    All subclasses have the same states, so a ``MetricCollection`` of them updates only one. The states are part of the
    ``state_dict``. Pass the same accuracies in every process.

    Log ``metric.compute()``, not the metric: Lightning resets a metric passed to ``self.log`` at the end of an epoch.

    Args:
        tasks: number of tasks of the stream, T ≥ 1.
        kwargs: arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``tasks`` is below 1.
    """

    full_state_update = True  # new accuracies for a task replace earlier ones
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    # Infinite where not measured: torchmetrics does not group metrics whose states contain NaN.
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
        """Lowest accuracy on each task since its own training ended, (T,), NaN where not measured."""
        return _or_nan(self._lowest)

    @property
    def start(self) -> Tensor:
        """Accuracy on each task before any training, (T,), NaN where not measured."""
        return _or_nan(self._start)

    def update(self, accuracy: Tensor, task: int) -> None:
        """Add the current accuracy on the tasks, as often as it is measured.

        Args:
            accuracy: (T,) in [0, 1], or shorter for the first few tasks; NaN for a task that was not measured.
            task: index of the task in training or just finished, never lower than before; −1 before any training.
                The last accuracies for a task are taken as those after it.

        Raises:
            ValueError: ``accuracy`` has another shape or is outside [0, 1], as percentages are, or ``task`` is out of
                range or out of order. The state is unchanged then.
        """
        accuracy = self._checked(accuracy.detach().to(self._R), task)
        tasks = torch.arange(len(accuracy), device=accuracy.device)
        given = accuracy.isfinite()
        # New tensors, as inference tensors cannot be modified in place outside inference mode.
        self._R = torch.where(given & (tasks == task)[:, None], accuracy, self._R)
        self._lowest = torch.where(given & (tasks < task), accuracy.minimum(self._lowest), self._lowest)
        self._start = torch.where(given & (task < 0), accuracy, self._start)

    def _checked(self, accuracy: Tensor, task: int) -> Tensor:
        """Validate the accuracies and pad them to (T,), infinite where not measured."""
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


def _or_nan(state: Tensor) -> Tensor:
    return torch.where(state.isfinite(), state, torch.nan)
