"""What a method takes is counted to the byte."""

import json

import pytest
import torch

from benchmarks import memory
from benchmarks.settings import Setting


def test_peak_is_the_most_at_once() -> None:
    def act() -> None:
        a = torch.zeros(1000)
        del a
        b = torch.zeros(3000)
        c = torch.zeros(500)
        del b, c

    assert memory.peak(act) == 4 * 3500


@pytest.mark.slow
def test_ewc_takes_two_numbers_a_weight(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for method in ("plain", "ewc"):
        memory.main([*Setting("mlp").flags(), "--method", method])
        said[method] = json.loads(capsys.readouterr().out.splitlines()[-1])
    weights = 784 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10
    assert said["plain"]["kept"] == 0
    assert said["ewc"]["kept"] == 2 * 4 * weights
    assert said["ewc"]["peak"] - said["plain"]["peak"] == pytest.approx(2 * 4 * weights, rel=0.05)
    assert said["ewc"]["rss"] >= said["ewc"]["peak"]
