"""A stream worked out by hand, and any stream by its whole history."""

import math

import pytest
import torch
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from sal_lightning.metrics import (
    AverageAccuracy,
    BackwardTransfer,
    ContinualMetric,
    Forgetting,
    ForwardTransfer,
    LearningAccuracy,
    MinAccuracy,
    WorstAccuracy,
    WorstCaseAccuracy,
)

NAN = math.nan
MEASURES = (
    AverageAccuracy,
    BackwardTransfer,
    Forgetting,
    ForwardTransfer,
    LearningAccuracy,
    MinAccuracy,
    WorstAccuracy,
    WorstCaseAccuracy,
)


# Task 0 gets better with task 1 and then worse; each task falls lower on the way than at any end.
STREAM = (
    ([0.1, 0.1, 0.3], -1),
    ([0.6, 0.2, 0.1], 0),
    ([0.3, 0.1, NAN], 1),
    ([0.9, 0.8, 0.4], 1),
    ([NAN, 0.4], 2),
    ([0.7, 0.5, 1.0], 2),
)


HALFWAY = 4
R = torch.tensor([[0.6, 0.2, 0.1], [0.9, 0.8, 0.4], [0.7, 0.5, 1.0]])
START, LOWEST = torch.tensor([0.1, 0.1, 0.3]), torch.tensor([0.3, 0.4, NAN])
AT_THE_END = {
    "AverageAccuracy": 2.2 / 3,
    "BackwardTransfer": (0.1 - 0.3) / 2,
    "Forgetting": (0.2 + 0.3) / 2,
    "ForwardTransfer": (0.1 + 0.1) / 2,
    "LearningAccuracy": 2.4 / 3,
    "MinAccuracy": (0.3 + 0.4) / 2,
    "WorstAccuracy": 0.5,
    "WorstCaseAccuracy": 1 / 3 + 2 / 3 * 0.35,
}
AFTER_TWO = {
    "AverageAccuracy": 0.85,
    "BackwardTransfer": 0.3,
    "Forgetting": -0.3,
    "ForwardTransfer": 0.1,
    "LearningAccuracy": 0.7,
    "MinAccuracy": 0.3,
    "WorstAccuracy": 0.8,
    "WorstCaseAccuracy": 0.8 / 2 + 0.3 / 2,
}
AFTER_ONE = dict.fromkeys(AT_THE_END, NAN) | {
    "AverageAccuracy": 0.6,
    "LearningAccuracy": 0.6,
    "WorstAccuracy": 0.6,
    "WorstCaseAccuracy": 0.6,
}


def collection(tasks: int = 3) -> MetricCollection:
    return MetricCollection([measure(tasks) for measure in MEASURES])


def feed(metric: ContinualMetric | MetricCollection, stream=STREAM):
    for accuracy, task in stream:
        metric.update(torch.tensor(accuracy), task)
    return metric


def values(metrics: MetricCollection) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.compute().items()}


def near(expected):
    return pytest.approx(expected, abs=1e-6, nan_ok=True)


def slowly(stream: list[tuple[list[float], int]]) -> dict[str, float]:
    """The definitions read off the whole history; NaN where a list has nothing or a NaN in it."""

    def mean(terms):
        return math.fsum(terms) / len(terms) if terms else NAN

    def least(terms, pick=min):
        return NAN if not terms or any(math.isnan(x) for x in terms) else pick(terms)

    def last(i, j):
        return next((a[j] for a, task in reversed(stream) if task == i and not math.isnan(a[j])), NAN)

    def low(j):
        return least([a[j] for a, task in stream if task > j and not math.isnan(a[j])])

    k = 1 + max((task for a, task in stream if not all(math.isnan(x) for x in a)), default=-1)
    k = max(k, 1)
    now = [last(k - 1, j) for j in range(k)]
    drops = [least([last(i, j) for i in range(j, k - 1)], max) - now[j] for j in range(k - 1)]
    lows = mean([low(j) for j in range(k - 1)])
    return {
        "AverageAccuracy": mean(now),
        "BackwardTransfer": mean([now[j] - last(j, j) for j in range(k - 1)]),
        "Forgetting": mean(drops),
        "ForwardTransfer": mean([last(j - 1, j) - last(-1, j) for j in range(1, k)]),
        "LearningAccuracy": mean([last(j, j) for j in range(k)]),
        "MinAccuracy": lows,
        "WorstAccuracy": least(now),
        "WorstCaseAccuracy": now[-1] if k == 1 else now[-1] / k + (1 - 1 / k) * lows,
    }


@st.composite
def streams(draw):
    tasks = draw(st.integers(1, 4))
    # Few are missing, or all would be NaN.
    one = st.one_of(*[st.floats(0, 1, width=32)] * 19, st.just(NAN))
    order = sorted(draw(st.lists(st.integers(-1, tasks - 1), min_size=1, max_size=12)))
    return tasks, [(draw(st.lists(one, min_size=tasks, max_size=tasks)), task) for task in order]
