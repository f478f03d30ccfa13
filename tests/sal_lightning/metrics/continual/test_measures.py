import math

import torch

from sal_lightning.metrics import (
    continual,
)
from tests.sal_lightning.metrics.continual.streams import (
    AT_THE_END,
    LOWEST,
    NAN,
    START,
    STREAM,
    R,
    collection,
    feed,
    near,
    values,
)


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
