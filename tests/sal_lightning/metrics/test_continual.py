import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
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
    continual,
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


@pytest.mark.parametrize(("steps", "expected"), [(2, AFTER_ONE), (HALFWAY, AFTER_TWO), (len(STREAM), AT_THE_END)])
def test_a_stream_by_hand_at_every_task(steps, expected):
    assert values(feed(collection(), STREAM[:steps])) == near(expected)


def test_the_functions_by_hand():
    assert {
        "AverageAccuracy": continual.average_accuracy(R),
        "BackwardTransfer": continual.backward_transfer(R),
        "Forgetting": continual.forgetting(R),
        "ForwardTransfer": continual.forward_transfer(R, START),
        "LearningAccuracy": continual.learning_accuracy(R),
        "MinAccuracy": continual.min_accuracy(R, LOWEST),
        "WorstAccuracy": continual.worst_accuracy(R),
        "WorstCaseAccuracy": continual.worst_case_accuracy(R, LOWEST),
    } == near(AT_THE_END)


def test_what_is_remembered():
    metric = feed(AverageAccuracy(3))
    torch.testing.assert_close(metric.R, R)
    torch.testing.assert_close(metric.start, START)
    torch.testing.assert_close(metric.lowest, LOWEST, equal_nan=True)


def test_the_functions_leave_tasks_not_reached_and_the_upper_half_alone():
    unseen = torch.full((4, 4), NAN)
    unseen[:3, :3] = R.tril().where(R.tril() > 0, NAN)
    assert continual.forgetting(unseen) == near(AT_THE_END["Forgetting"])
    assert continual.backward_transfer(unseen) == near(AT_THE_END["BackwardTransfer"])
    assert continual.forward_transfer(unseen, torch.zeros(4)).isnan()
    assert continual.average_accuracy(unseen.double()).dtype == torch.double


def test_what_was_better_before_its_own_training_was_not_forgotten():
    assert continual.forgetting(torch.tensor([[0.9, 0.8, 0], [0.9, 0.3, 0], [0.9, 0.3, 0]])) == 0


def test_what_needs_something_not_measured_is_nan_and_the_rest_is_not():
    row = ([0.7, NAN, 1.0], 2)
    expected = dict.fromkeys(("AverageAccuracy", "WorstAccuracy", "BackwardTransfer", "Forgetting"), NAN)
    stream = [*STREAM[:-1], row]
    stream[4] = ([0.8, NAN], 2)
    got = values(feed(collection(), stream))
    assert got == near(AT_THE_END | expected | dict.fromkeys(("MinAccuracy", "WorstCaseAccuracy"), NAN))


def test_a_task_that_was_skipped_is_missed_only_where_it_is_needed():
    got = values(feed(collection(), [step for step in STREAM if step[1] != 1]))
    assert got["AverageAccuracy"] == near(AT_THE_END["AverageAccuracy"])
    assert math.isnan(got["LearningAccuracy"])
    assert math.isnan(got["Forgetting"])


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


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(streams())
def test_any_stream_is_as_its_whole_history(drawn):
    tasks, stream = drawn
    assert values(feed(collection(tasks), stream)) == near(slowly(stream))


def test_a_random_matrix_is_as_its_history():
    rows = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    stream = [(row.tolist(), task) for task, row in enumerate(rows, start=-1)]
    expected = slowly(stream)
    assert not any(math.isnan(value) for value in expected.values())
    assert values(feed(collection(6), stream)) == near(expected)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_empty_is_nan():
    assert values(collection()) == near(dict.fromkeys(AT_THE_END, NAN))
    assert values(feed(collection(), STREAM[:1])) == near(dict.fromkeys(AT_THE_END, NAN))
    assert values(feed(collection(), [([NAN], 0)])) == near(dict.fromkeys(AT_THE_END, NAN))


def test_a_collection_updates_its_states_once(monkeypatch):
    calls = []
    checked = ContinualMetric._checked
    monkeypatch.setattr(ContinualMetric, "_checked", lambda *args: (calls.append(1), checked(*args))[1])
    metrics = collection()
    feed(metrics, [([0.5, NAN], 0)])
    assert list(metrics.compute_groups.values()) == [sorted(AT_THE_END)]
    calls.clear()
    feed(metrics, [([0.4, 0.6], 1)])
    assert len(calls) == 1
    assert values(metrics) == near(slowly([([0.5, NAN, NAN], 0), ([0.4, 0.6, NAN], 1)]))


def test_the_value_of_an_update_is_its_own_and_all_are_remembered():
    metric = AverageAccuracy(3)
    assert metric(torch.tensor([0.4]), 0) == near(0.4)
    assert metric(torch.tensor([0.8]), 0) == near(0.8)
    assert metric(torch.tensor([0.2, 0.6]), 1) == near(0.4)
    torch.testing.assert_close(metric.R[:2, :2], torch.tensor([[0.8, NAN], [0.2, 0.6]]), equal_nan=True)


@pytest.mark.parametrize("measure", MEASURES)
def test_processes_agree_and_one_that_measured_nothing_follows(measure):
    alone = feed(measure(3))

    def gather(state: Tensor, group=None) -> list[Tensor]:
        return [state, state.clone(), torch.full_like(state, math.inf)]

    together = feed(measure(3, dist_sync_fn=gather, distributed_available_fn=lambda: True))
    assert together.compute() == alone.compute()
    torch.testing.assert_close(together.R, alone.R)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
)
def test_it_lives_where_it_is_put(device):
    assert values(feed(collection().to(device))) == near(AT_THE_END)


@pytest.mark.parametrize("dtype", [torch.half, torch.double])
def test_accuracies_of_any_precision(dtype):
    metric = AverageAccuracy(2)
    metric.update(torch.tensor([0.5, 0.25], dtype=dtype, requires_grad=True), 1)
    assert (metric.compute(), metric.compute().dtype) == (0.375, torch.float)


def test_what_was_made_in_inference_mode_can_be_updated_outside():
    metric = feed(AverageAccuracy(3))
    with torch.inference_mode():
        metric.reset()
        feed(metric, STREAM[:2])
    assert feed(metric, STREAM[2:]).compute() == near(AT_THE_END["AverageAccuracy"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_forgets_all():
    metrics = feed(collection())
    metrics.reset()
    assert values(metrics) == near(dict.fromkeys(AT_THE_END, NAN))
    assert values(feed(metrics, STREAM[:HALFWAY])) == near(AFTER_TWO)


def test_it_resumes_from_a_state_dict(tmp_path):
    torch.save(feed(collection(), STREAM[:HALFWAY]).state_dict(), tmp_path / "metrics.pt")
    metrics = collection()
    metrics.load_state_dict(torch.load(tmp_path / "metrics.pt", weights_only=True))
    assert values(feed(metrics, STREAM[HALFWAY:])) == near(AT_THE_END)


def test_it_resumes_from_a_pickle():
    metrics = pickle.loads(pickle.dumps(feed(collection(), STREAM[:HALFWAY])))
    assert values(metrics) == near(AFTER_TWO)
    assert values(feed(metrics, STREAM[HALFWAY:])) == near(AT_THE_END)


def test_a_mean_of_ones_may_be_above_one():
    above = (torch.ones(10) / 10).sum()
    assert above > 1
    metric = AverageAccuracy(1)
    metric.update(above[None], 0)
    assert metric.compute() == 1


@pytest.mark.parametrize(
    ("accuracy", "task", "message"),
    [
        ([0.5], 3, r"task to be from -1 .* to 2, got 3"),
        ([0.5], -2, r"task to be from -1 .* to 2, got -2"),
        ([0.5], 1.5, r"task to be from -1 .* to 2, got 1.5"),
        ([0.5], 0, r"task to be 1 or later: .* got 0"),
        ([0.5], -1, r"task to be 1 or later: .* got -1"),
        ([0.5] * 4, 1, r"accuracy to have shape \(1,\) to \(3,\), got \(4,\)"),
        ([], 1, r"accuracy to have shape .*, got \(0,\)"),
        (0.5, 1, r"accuracy to have shape .*, got \(\)"),
        ([[0.5] * 3], 1, r"accuracy to have shape .*, got \(1, 3\)"),
        ([70.0, NAN], 1, r"accuracy to be in \[0, 1\].* got \[70.0, nan\]"),
        ([-0.5], 1, r"accuracy to be in \[0, 1\].* got \[-0.5\]"),
        ([math.inf], 1, r"accuracy to be in \[0, 1\].* got \[inf\]"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(accuracy, task, message):
    metrics = feed(collection(), STREAM[:HALFWAY])
    with pytest.raises(ValueError, match=message):
        metrics.update(torch.tensor(accuracy), task)
    assert values(metrics) == near(AFTER_TWO)


@pytest.mark.parametrize("tasks", [0, -1])
def test_a_stream_has_tasks(tasks):
    with pytest.raises(ValueError, match=f"tasks to be at least 1, got {tasks}"):
        AverageAccuracy(tasks)
