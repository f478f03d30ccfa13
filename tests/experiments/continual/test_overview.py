"""The tables of the front page."""

import pytest

from experiments.continual.overview import overview
from experiments.continual.protocol import Result

pytestmark = pytest.mark.slow


def test_the_overview_holds_the_streams_of_mnist_that_every_method_was_run_on(plain: Result) -> None:
    record = plain.record() | {"data": "mnist"}
    task = record | {"scenario": "split-task"}
    events = [record["steps"] * t + 3 for t in range(1, 5)] + [7]
    averages, closer = overview(
        [
            record,
            record | {"measures": record["measures"] | {"average": 1.0}},
            record | {"method": "sal", "events": events},
            record | {"method": "sal:recall=0"},
            record | {"method": "ewc", "measures": record["measures"] | {"average": 0.75}},
            task,
            task | {"method": "sal"},
            record | {"scenario": "split-domain-ordered"},
            plain.record() | {"scenario": "permuted"},
        ]
    ).split("\n\n")
    half = (record["measures"]["average"] + 1) / 2
    first = [[cell.strip() for cell in line.strip("|").split("|")] for line in averages.splitlines()]
    assert first[0] == ["method", "is told, or keeps", "split-domain"]  # ewc was not run on split-task
    assert [row[:2] for row in first[2:]] == [["plain", "nothing"], ["sal", "nothing"], ["ewc", "task ends"]]
    assert first[2][2] == f"{half:.3f} ± {1 - half:.3f}"
    assert first[4][2] == "0.750"
    assert [line.split(" | ")[:2] for line in closer.splitlines()[2:]] == [
        ["| split-domain", "plain"],
        ["| split-domain", "sal"],
    ]
    assert "4 of 4, 1 false" in closer
