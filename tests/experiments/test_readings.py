import pytest

from experiments import readings
from experiments.filing import read_all

STEPS = 36  # of each task: enough for the change to be found


@pytest.mark.slow
def test_a_run_records_what_emerged_and_a_frozen_one_learns_less():
    learning, frozen = (
        readings.run(readings.Run("mlp", "permuted", held, 0, "digits", STEPS)) for held in (False, True)
    )
    for record in (learning, frozen):
        assert record["steps"] == 2 * STEPS
        assert record["changes"] == [STEPS]
        assert record["emerged"][0] == 0  # the first states are new, and one pattern
        assert sum(record["spectrum"]) > 99.9
        assert len(record["learned"]) == 2
    assert learning["spectrum"] != frozen["spectrum"]
    assert sum(learning["learned"]) > sum(frozen["learned"])


@pytest.mark.slow
def test_it_reads_a_run_and_fills_the_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    args = ["--networks", "mlp", "--streams", "split-five", "--data", "digits", "--steps", "5"]
    readings.main([*args, "--out", str(tmp_path / "out"), "--table", str(page)])
    records = read_all(tmp_path / "out")
    assert [record["frozen"] for record in records] == [False, True]
    for record in records:
        assert record["steps"] == 25
        assert record["changes"] == [5, 10, 15, 20]
        assert len(record["learned"]) == 5
    text = page.read_text()
    assert text.count("| mlp | split-five |") == 2
    expected = int(readings.cells(records[0])[5])  # the frozen run does not count
    assert f"emerged elsewhere in {expected} of 25 steps" in text
    readings.main([*args, "--out", str(tmp_path / "out"), "--table", str(page)])  # nothing is run again
    assert page.read_text() == text
    assert "readings" in capsys.readouterr().out
