"""The benchmark of long logs measures what it says: real files, read whole, without a fault."""

import json
from pathlib import Path

from benchmarks.log import KEY, main, make, replayed, verified
from safi_agent.log.rotation import log_files
from tests.safi_agent.log.chains import plain_faults


def test_its_lines_are_a_chain_whose_figures_follow(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    log.with_suffix(".anchor").write_text(json.dumps(make(log, 40)))
    assert plain_faults(log.read_bytes().splitlines(True), KEY) == []
    assert verified(log) == replayed(log) == 40


def test_a_log_that_is_full_goes_on_in_the_next_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.log.FULL", 50_000)
    log = tmp_path / "log.json"
    log.with_suffix(".anchor").write_text(json.dumps(make(log, 40)))
    assert len(log_files(log)) > 2
    assert verified(log) == replayed(log) == 40


def test_the_table_is_written_from_what_was_measured(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.log.measured", lambda what, log: {"lines": 20, "cpu": 0.5, "peak_mb": 100.0})
    page, out = tmp_path / "log.md", tmp_path / "log.json"
    main(["--lines", "20", "--table", str(page), "--out", str(out)])
    assert "| safi verify | 20 |" in page.read_text()
    assert json.loads(out.read_text())["command"] == "python -m benchmarks.log --lines 20"
