"""The figure's lines are the means over seeds, strength by strength."""

from pathlib import Path

import pytest

from experiments.language.figure import draw, means
from tests.experiments.language.test_curves import record

RECORDS = [
    record("plain", 1e-4, 0, reached=2.4, after=1.7, lr=1e-4),
    record("plain", 1e-3, 0, reached=2.0, after=1.9, lr=1e-3),
    record("plain", 1e-3, 1, reached=2.2, after=2.1, lr=1e-3),
]


def test_a_point_is_the_mean_over_seeds() -> None:
    ((name, points),) = means(RECORDS).items()
    assert name == "plain"
    assert points == [pytest.approx((2.4, 0.2)), pytest.approx((2.1, 0.5))]


def test_it_is_drawn(tmp_path: Path) -> None:
    draw(RECORDS, tmp_path / "new" / "language.png")
    assert (tmp_path / "new" / "language.png").read_bytes().startswith(b"\x89PNG")
