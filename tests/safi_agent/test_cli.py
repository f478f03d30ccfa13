"""``safi chat`` and ``safi drain``."""

import os
import subprocess
import sys
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


def test_drain_finishes_what_a_dead_process_left(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from safi_agent import create_safi_chain\n"
        "from tests.safi_agent.fakes import Fake, approve\n"
        "model = Fake(audit_delay=30, will=approve(['Political Neutrality']))\n"
        "create_safi_chain(model, 'civic').invoke('a')\n"
        "os._exit(1)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for command in (["-c", code], ["-c", "from safi_agent.cli import app; app()", "drain", "--values", "civic"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 audits finished." in done.stdout
    assert '"auditStatus": "complete"' in (tmp_path / "saf-spirit-log.json").read_text()
