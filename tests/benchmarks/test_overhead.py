"""The whole of ``python -m benchmarks.overhead``, briefly."""

import json
from pathlib import Path

import pytest

from benchmarks.overhead import HEADINGS, main, row
from benchmarks.steps import Lap

SHAPE = "--width 16 --depth 1 --heads 2 --vocab 31 --context 8 --sequences 2"
BRIEF = "--rounds 2 --steps 2 --warmup 1 --settle 1 --lead 1 --seed 3"
FLAGS = ["--workload", "gpt", *SHAPE.split(), *BRIEF.split()]
PAGE = "# Page\n\n<!-- cost -->stale<!-- /cost -->\n\n<!-- growth -->kept<!-- /growth -->\n"


@pytest.mark.slow
def test_a_run_is_filed_and_fills_its_part_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    main([*FLAGS, "--methods", "sal", "ewc", "--no-memory", "--out", str(tmp_path / "out"), "--table", str(page)])
    (file,) = (tmp_path / "out").glob("*.json")
    record = json.loads(file.read_text())
    assert file.name == "gpt-width16-depth1-heads2-vocab31-context8-sequences2-cpufp32-threads1.json"
    assert record["command"] == (
        f"python -m benchmarks.overhead --workload gpt {SHAPE} {BRIEF} --methods plain sal ewc --no-memory"
    )
    assert {"commit", "hardware", "versions", "setting", "parameters", "bytes"} <= set(record)
    assert record["seed"] == 3
    assert [r["method"] for r in record["rows"]] == ["plain", "sal", "ewc"]
    assert all(len(lap["wall"]) == 2 for laps in record["laps"].values() for lap in laps)
    text = page.read_text()
    assert text.startswith("# Page\n\n<!-- cost -->\n\n## Cost of a step")
    assert text.endswith("<!-- /cost -->\n\n<!-- growth -->kept<!-- /growth -->\n")
    assert f"| {' | '.join(HEADINGS)} |" in text
    assert "stale" not in text
    assert "| ewc | " in capsys.readouterr().out


@pytest.mark.slow
def test_logging_is_measured_against_none(tmp_path: Path) -> None:
    main([*FLAGS, "--logging", "3", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*-logging.json")
    record = json.loads(file.read_text())
    assert [r["method"] for r in record["rows"]] == ["never logged", "logged every 3 steps", "logged each step"]
    assert len(record["laps"]["never logged"][0]["wall"]) == 3


def test_ratios_are_those_of_each_round() -> None:
    first = [Lap([1.0, 3.0], [1.0, 1.0]), Lap([4.0, 4.0], [1.0, 1.0])]
    laps = [Lap([4.0, 4.0], [3.0, 3.0]), Lap([4.0, 8.0], [1.0, 1.0])]
    found = row("sal", laps, first)
    assert found["ratio"] == {"median": 1.75, "least": 1.5, "most": 2.0}
    assert found["cpu_ratio"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert found["step_ms"] == 4000.0
