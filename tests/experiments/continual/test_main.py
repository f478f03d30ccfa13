"""The command line: what it runs, and what it leaves."""

import json
from pathlib import Path

import pytest

from experiments.continual import __main__ as command_line
from experiments.continual import methods
from experiments.continual.results import Run, read_all

pytestmark = pytest.mark.slow


def arguments(out: Path, *more: str) -> list[str]:
    return ["--data", "digits", "--methods", "plain", "--steps", "3", "--out", str(out), *more]


def test_it_resumes_where_results_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(arguments(tmp_path, "--seeds", "0"))
    command_line.main(arguments(tmp_path, "--seeds", "0", "1", "--table", str(tmp_path / "new" / "table.md")))
    assert "1 run, 1 there already" in " ".join(capsys.readouterr().out.split())
    assert len(read_all(tmp_path)) == 2
    assert "| plain | trained | 2 |" in (tmp_path / "new" / "table.md").read_text()


def test_the_quick_form_compares_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_there_are = {name: methods.METHODS[name] for name in ("plain", "online-ewc")}
    monkeypatch.setattr(command_line, "METHODS", all_there_are)
    command_line.main(["--quick", "--stream", "split-domain-fuzzy", "--out", str(tmp_path)])
    assert {(r["method"], r["steps"], r["data"]) for r in read_all(tmp_path)} == {
        (method, 20, "digits") for method in all_there_are
    }


def test_force_runs_again(tmp_path: Path) -> None:
    file = Run("split-domain", "plain", "digits", 0, 3, 1e-3).file(tmp_path)
    command_line.main(arguments(tmp_path))
    file.write_text(file.read_text().replace('"method": "plain"', '"method": "old"'))
    command_line.main(arguments(tmp_path, "--force"))
    assert json.loads(file.read_text())["method"] == "plain"


def test_nothing_is_run_where_one_method_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'sal:strenth=2'"):
        command_line.main(arguments(tmp_path, "--methods", "plain", "sal:strenth=2"))
    assert read_all(tmp_path) == []


def test_pages_are_written_from_the_records_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command_line.main(arguments(tmp_path, "--seeds", "0"))
    monkeypatch.setattr(command_line, "run", lambda *_, **__: pytest.fail("a run"))
    page = tmp_path / "page.md"
    command_line.main(["--from-records", "--out", str(tmp_path), "--table", str(page)])
    assert "| plain | trained | 1 |" in page.read_text()
