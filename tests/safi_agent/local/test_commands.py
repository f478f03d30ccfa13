"""Commands whose Conscience is a local judge."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safi_agent.cli import app

SET = "name: three\nvalues: [{name: Truth, weight: 0.5}, {name: Care, weight: 0.3}, {name: Thrift, weight: 0.2}]\n"
STORES = {
    "chat": ["--store", "sqlite:///safi.db"],
    "serve": ["--store", "sqlite:///safi.db"],
    "worker": ["--store", "postgresql+psycopg://127.0.0.1/safi"],
}


def test_a_conversation_is_audited_by_it_and_escalated(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("three.yaml").write_text(SET)
    options = ["--conscience-model", f"local:{judge}", "--escalation-model", "offline"]
    command = ["chat", "--model", "offline", "--values", "three.yaml", *options]
    done = CliRunner().invoke(app, command, input="Who decides on my permit?\n")
    assert done.exit_code == 0, done.output
    (line,) = Path("saf-spirit-log.json").read_text().splitlines()
    record = json.loads(line)
    assert record["models"]["conscience"].startswith("local:")
    assert "model" in {row["judge"] for row in record["localJudge"]["findings"]}


@pytest.mark.parametrize("command", list(STORES))
def test_a_folder_without_a_judge_ends_them_in_a_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", "offline", "--conscience-model", "local:nowhere", *STORES[command]]
    done = CliRunner().invoke(app, [command, *options])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"safi {command}: expected a folder of a local judge")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", list(STORES))
def test_an_escalation_needs_a_local_judge(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", "offline", "--escalation-model", "offline", *STORES[command]]
    done = CliRunner().invoke(app, [command, *options])
    assert (done.exit_code, "expected None without a local judge" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())
