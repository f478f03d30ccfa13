"""``safi worker``: what it needs; that it works is shown where audits on a queue are."""

from pathlib import Path

from typer.testing import CliRunner

from safi_agent.cli import app


def test_it_needs_a_store_that_others_share(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["worker", "--store", f"sqlite:///{tmp_path}/safi.db"])
    assert done.exit_code == 2
    assert "expected a URL that begins with" in done.stderr
    assert not list(tmp_path.iterdir())
