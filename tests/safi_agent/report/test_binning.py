"""Bins hold every turn once, and their figures are those of a slow twin."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safi_agent.report.binning import bins

FIGURES = st.lists(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), max_size=60)


@settings(deadline=None)
@given(FIGURES, st.integers(1, 20))
def test_it_is_what_a_slow_twin_says(figures: list[float], most: int) -> None:
    at = list(range(1, len(figures) + 1))
    found = bins(at, figures, most)
    assert [turn for bin in found for turn in range(bin.first, bin.last + 1)] == at
    assert len(found) == min(most, len(at))
    sizes = [bin.last - bin.first for bin in found]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    for bin in found:
        there = [figure for figure in figures[bin.first - 1 : bin.last] if figure == figure]
        assert bin.known == len(there)
        if there:
            assert bin.mean == pytest.approx(sum(there) / len(there), abs=1e-9)
            assert (bin.low, bin.high) == (min(there), max(there))
        else:
            assert (bin.mean, bin.low, bin.high) == (None, None, None)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="figures: expected one for each of 2 turns, got 1"):
        bins([1, 2], [1.0], 3)
    with pytest.raises(ValueError, match="most: expected at least 1, got 0"):
        bins([1], [1.0], 0)
