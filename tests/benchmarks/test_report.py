from benchmarks.report import grid, spread


def test_grid_and_spread() -> None:
    assert grid(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert spread([1.0, 3.0, 2.0]) == (2.0, 1.0, 3.0)
