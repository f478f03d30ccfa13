import math

import pytest
import torch
from hypothesis import given, settings

from sal_lightning.metrics import (
    AverageAccuracy,
    ContinualMetric,
)
from tests.sal_lightning.metrics.continual.streams import (
    AFTER_ONE,
    AFTER_TWO,
    AT_THE_END,
    HALFWAY,
    NAN,
    STREAM,
    collection,
    feed,
    near,
    slowly,
    streams,
    values,
)


@pytest.mark.parametrize(("steps", "expected"), [(2, AFTER_ONE), (HALFWAY, AFTER_TWO), (len(STREAM), AT_THE_END)])
def test_a_stream_by_hand_at_every_task(steps, expected):
    assert values(feed(collection(), STREAM[:steps])) == near(expected)


@pytest.mark.slow
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(streams())
def test_values_of_any_stream_equal_those_computed_from_its_whole_history(drawn):
    tasks, stream = drawn
    assert values(feed(collection(tasks), stream)) == near(slowly(stream))


def test_values_of_a_random_matrix_equal_those_computed_from_its_whole_history():
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
