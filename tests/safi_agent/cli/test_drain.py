"""``safi drain``."""

import os
import subprocess
import sys
from pathlib import Path


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
    for command in (["-c", code], ["-c", "from safi_agent.cli import app; app()", *drain]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 audits finished." in done.stdout
    assert '"auditStatus": "complete"' in (tmp_path / "saf-spirit-log.json").read_text()
