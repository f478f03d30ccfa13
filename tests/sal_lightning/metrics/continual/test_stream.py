import math
import pickle

import pytest
import torch
from torch import Tensor

from sal_lightning.metrics import (
    AverageAccuracy,
)
from tests.sal_lightning.metrics.continual.streams import (
    AFTER_TWO,
    AT_THE_END,
    HALFWAY,
    LOWEST,
    MEASURES,
    NAN,
    START,
    STREAM,
    R,
    collection,
    feed,
    near,
    values,
)


def test_the_matrix_the_initial_and_the_lowest_accuracies_are_kept():
    metric = feed(AverageAccuracy(3))
    torch.testing.assert_close(metric.R, R)
    torch.testing.assert_close(metric.start, START)
    torch.testing.assert_close(metric.lowest, LOWEST, equal_nan=True)


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
def test_the_values_are_the_same_on_every_device(device):
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


def test_an_accuracy_that_rounding_lifts_above_one_is_accepted():
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
def test_a_number_of_tasks_below_one_is_refused(tasks):
    with pytest.raises(ValueError, match=f"tasks to be at least 1, got {tasks}"):
        AverageAccuracy(tasks)
