from benchmarks.report import spread


def test_spread() -> None:
    assert spread([1.0, 3.0, 2.0]) == (2.0, 1.0, 3.0)
