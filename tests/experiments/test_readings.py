import pytest

from experiments import readings
from experiments.filing import read_all


@pytest.mark.slow
def test_it_reads_a_run_and_fills_the_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    args = ["--networks", "mlp", "--streams", "split-five", "--data", "digits", "--steps", "40"]
    readings.main([*args, "--out", str(tmp_path / "out"), "--table", str(page)])
    records = read_all(tmp_path / "out")
    assert [record["frozen"] for record in records] == [False, True]
    for record in records:
        assert record["steps"] == 200
        assert record["changes"] == [40, 80, 120, 160]
        assert record["emerged"][0] == 0  # the first states are new, and one pattern
        assert sum(record["spectrum"]) > 99.9
        assert len(record["learned"]) == 5
    learning, frozen = records
    assert learning["spectrum"] != frozen["spectrum"]
    assert sum(learning["learned"]) > sum(frozen["learned"])
    text = page.read_text()
    assert text.count("| mlp | split-five |") == 2
    expected = int(readings.cells(records[0])[5])  # the frozen run does not count
    assert f"emerged elsewhere in {expected} of 200 steps" in text
    readings.main([*args, "--out", str(tmp_path / "out"), "--table", str(page)])  # nothing is run again
    assert page.read_text() == text
    assert "readings" in capsys.readouterr().out
