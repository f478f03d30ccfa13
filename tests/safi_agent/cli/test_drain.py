"""``safi drain``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked

pytestmark = pytest.mark.slow


def test_drain_finishes_what_a_dead_process_left(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from safi_agent import create_safi_chain\n"
        "from tests.safi_agent.fakes import Fake, approve\n"
        "model = Fake(audit_delay=30, will=approve(['Political Neutrality']))\n"
        "create_safi_chain(model, 'civic').invoke('a')\n"
        "os._exit(1)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    drain = ["drain", "--values", "civic", "--model", "offline"]
    assert forked.run(code, cwd=tmp_path).returncode == 1
    command = [sys.executable, "-c", "from safi_agent.cli import app; app()", *drain]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 audit finished." in done.stdout
    assert '"auditStatus": "complete"' in (tmp_path / "saf-spirit-log.json").read_text()


def test_what_is_left_is_printed_and_ends_it_with_1(tmp_path: Path) -> None:
    code = (
        "import os, sqlite3\n"
        "from safi_agent import create_safi_chain\n"
        "create_safi_chain('offline', 'civic').invoke('a')\n"
        "sqlite3.connect('safi.db').execute(\"UPDATE safi_turns SET owner = 'elsewhere:7:x'\").connection.commit()\n"
        "os._exit(1)\n"
    )
    arguments = ["drain", "--values", "civic", "--model", "offline", "--timeout", "5"]
    assert forked.run(code, cwd=tmp_path).returncode == 1
    done = forked.run("from safi_agent.cli import app; app()", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "0 audits finished.\n")
    assert done.stderr.splitlines() == [
        "safi drain: 1 turn left.",
        "safi drain: 1 memory key of 'civic' on turns of the process elsewhere:7: they are taken over when it has "
        "ended, or has been silent for 60 s.",
    ]
