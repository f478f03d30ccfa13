"""``safi report``."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safi_agent.cli import app
from tests.safi_agent.report.records import LOW, record, write


@pytest.mark.slow
def test_it_writes_a_page_beside_the_log_and_says_what_it_found(tmp_path: Path) -> None:
    log = write(tmp_path / "log.json", [record(1), record(2, **LOW)])
    said = CliRunner().invoke(app, ["report", str(log)])
    assert said.exit_code == 0, said.output
    assert said.output == f"{tmp_path / 'log.html'}: 2 turns, 1 to review.\n"
    assert (tmp_path / "log.html").read_text().startswith("<!doctype html>")


def test_thresholds_and_the_place_of_the_page_can_be_chosen(tmp_path: Path) -> None:
    log = write(tmp_path / "log.json", [record(1), record(2)])
    asked = ["report", str(log), "--out", str(tmp_path / "p.html"), "--review-below", "8", "--newest", "1"]
    assert CliRunner().invoke(app, asked).output == f"{tmp_path / 'p.html'}: 2 turns, 2 to review.\n"


def seal(page: Path) -> str:
    found = re.search(r'<p id="seal" class="(\w+)"><b>(.*?)</b> (.*?) <span>Checked', page.read_text())
    assert found
    return " ".join(found.groups())


def test_the_page_says_whether_the_log_is_as_it_was_written(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    safi = make()
    for question in ("a", "b"):
        safi.invoke(question)
    safi.drain()
    log, asked = tmp_path / "log.json", ["report", "log.json", "--store", f"sqlite:///{tmp_path}/safi.db"]
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, done.stderr) == (0, "")
    assert seal(tmp_path / "log.html") == "whole Sealed 2 lines, as they were written, compared with the store."
    CliRunner().invoke(app, ["report", "log.json", "--store", f"sqlite:///{tmp_path}/none.db"])
    assert "was not compared with a store" in seal(tmp_path / "log.html")
    log.write_text(log.read_text().replace("An answer", "No answer", 1))
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0
    assert "safi report: The log is not as it was written: " in done.stderr
    assert seal(tmp_path / "log.html").startswith("changed Changed The log is not as it was written: ")
    Path(f"{log}.key").unlink(missing_ok=True)
    write(log, [record(1)])
    CliRunner().invoke(app, ["report", "log.json", "--store", f"sqlite:///{tmp_path}/none.db"])
    assert seal(tmp_path / "log.html").startswith("unchecked Not verified None of the lines has a MAC")


def test_what_is_no_log_is_told_without_a_trace(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["report", str(tmp_path / "none.json")])
    assert said.exit_code == 2
    assert "safi report: log: expected an existing file" in said.output
    assert not list(tmp_path.iterdir())


def test_it_takes_the_log_that_chat_writes_if_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "saf-spirit-log.json", [record(1)])
    said = CliRunner().invoke(app, ["report"])
    assert said.output == "saf-spirit-log.html: 1 turn, 0 to review.\n"
