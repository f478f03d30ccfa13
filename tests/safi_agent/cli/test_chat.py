"""``safi chat``."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from safi_agent.cli import app


def test_a_conversation_shows_answers_ledgers_and_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["chat", "--values", "civic"], input="Who decides on my permit?\nA bomb?\n\n")
    assert said.exit_code == 0, said.output
    assert "offline rehearsal" in said.output
    assert "Will: approve" in said.output
    assert "Equal Treatment" in said.output
    assert "Spirit: " in said.output
    assert "I can't answer that here." in said.output
    assert "Will: violation" in said.output
    assert len((tmp_path / "saf-spirit-log.json").read_text().splitlines()) == 2
