"""The benchmark of long logs measures what it says: real files, read whole, without a fault."""

import json
from pathlib import Path

import pytest

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
    page = tmp_path / "log.md"
    main(["--lines", "20", "--table", str(page), "--out", str(tmp_path)])
    assert "| safi verify | 20 |" in page.read_text()
    assert json.loads((tmp_path / "log.json").read_text())["command"] == "python -m benchmarks.log --lines 20"


@pytest.mark.slow
def test_a_signed_log_is_verified_and_proven_by_the_commands(tmp_path: Path) -> None:
    main(["--signed", "--lines", "30", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "log-signed.json").read_text())
    assert record["command"] == "python -m benchmarks.log --signed --lines 30"
    assert [(row["what"], row["lines"]) for row in record["rows"]] == [("verify", 30), ("prove", 30)]
    assert all(row["cpu"] > 0 and row["peak_mib"] > 10 for row in record["rows"])
    assert 0 < record["rows"][1]["proof_ms"] < 1000
