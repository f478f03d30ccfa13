import math

import pytest
import torch

from experiments.continual.data import digits
from experiments.selection.protocol import answers, measured, noisy, risk_coverage, trained, ways


def test_risk_coverage_is_the_mean_over_all_orders_of_those_as_sure():
    generator = torch.Generator().manual_seed(0)
    wrong = (torch.rand(12, generator=generator) < 0.4).double()
    confidence = torch.randint(4, (12,), generator=generator).double()
    areas = []
    for _ in range(4000):
        order = torch.randperm(12, generator=generator)
        order = order[torch.argsort(confidence[order], descending=True, stable=True)]
        areas.append(float((wrong[order].cumsum(0) / torch.arange(1, 13)).mean()))
    assert risk_coverage(wrong, confidence) == pytest.approx(sum(areas) / len(areas), abs=0.005)
    assert risk_coverage(wrong, -wrong) < risk_coverage(wrong, torch.zeros(12)) < risk_coverage(wrong, wrong)


def test_each_way_answers_as_it_says():
    # Of five answers two are sure of class 2, two of class 0 and alike, one leans to 0.
    p = torch.tensor([[[0.1, 0.0, 0.9], [0.8, 0.2, 0.0], [0.2, 0.0, 0.8], [0.75, 0.25, 0.0], [0.5, 0.4, 0.1]]])
    alone = torch.tensor([[0.2, 0.7, 0.1]])
    found = ways(alone, p)
    assert {name: int(answer.guess) for name, answer in found.items()} == {
        "single": 2,
        "max-softmax": 1,
        "mean": 0,
        "vote": 0,
        "emergent": 0,
        "emergent, resonance": 0,
    }
    sure = {name: float(answer.confidence) for name, answer in found.items()}
    assert sure["single"] == pytest.approx(0.9)
    assert sure["max-softmax"] == pytest.approx(0.7)
    assert sure["mean"] == pytest.approx(2.35 / 5)
    assert sure["vote"] == sure["emergent"] == pytest.approx(0.6)
    assert 0 < sure["emergent, resonance"] < 1


@pytest.mark.slow
def test_a_network_with_dropout_answers_differently_each_time_and_the_same_in_every_run():
    arrays = digits()
    runs = []
    for _ in range(2):
        net = trained(arrays, 60, seed=0)
        alone, p = answers(net, noisy(arrays.test_x, 0.2, seed=0), times=4)
        runs.append(p)
    assert torch.equal(*runs)
    assert p.shape == (len(arrays.test_x), 4, 10)
    assert float(p[:, 0].sub(p[:, 1]).abs().max()) > 0.1
    torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:2]))
    found = {name: measured(answer, arrays.test_y) for name, answer in ways(alone, p).items()}
    assert found["max-softmax"]["accuracy"] > 0.7
    assert all(0 <= value["risk"] < 1 - value["accuracy"] + 0.1 for value in found.values())
    assert not any(math.isnan(value["risk"]) for value in found.values())
