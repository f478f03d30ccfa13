"""What every measure of continual learning remembers: the accuracy on each task after each task."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_ROUNDING = 1e-5  # a mean of ones may come out this much above 1


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


def _or_nan(state: Tensor) -> Tensor:
    return torch.where(state.isfinite(), state, torch.nan)
