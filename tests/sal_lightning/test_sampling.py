import pytest

from sal_lightning.sampling import sample


@pytest.mark.parametrize("total", [129, 150, 256, 257, 258, 300, 384, 1000, 1155, 4095])
@pytest.mark.parametrize("step", [0, 1, 77])
def test_no_row_comes_twice(total, step):
    rows = sample(total, 128, step).tolist()
    assert len(set(rows)) == 128
    assert 0 <= min(rows) <= max(rows) < total


def test_few_rows_are_all_taken():
    assert sample(128, 128, 3) == slice(None)


def test_over_the_steps_every_row_comes():
    assert {row for step in range(60) for row in sample(1155, 128, step).tolist()} == set(range(1155))
