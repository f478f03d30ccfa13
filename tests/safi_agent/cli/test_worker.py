"""``safi worker``: what it needs; that it works is shown where audits on a queue are."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from safi_agent.cli import app
from tests.safi_agent.postgres_server import free_port


def test_it_needs_a_store_that_others_share(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["worker", "--store", f"sqlite:///{tmp_path}/safi.db"])
    assert done.exit_code == 2
    assert "expected a URL that begins with" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["worker", "drain", "chat"])
def test_a_server_that_is_not_there_ends_it_in_a_line_without_the_password(command: str, tmp_path: Path) -> None:
    pytest.importorskip("procrastinate")
    url = f"postgresql+psycopg://anna:s3cret@127.0.0.1:{free_port()}/safi"
    done = CliRunner().invoke(app, [command, "--model", "offline", "--store", url, "--log", str(tmp_path / "log.json")])
    assert done.exit_code == 2
    assert f"safi {command}: store: expected a database that can be opened, got OperationalError." in done.stderr
    assert "s3cret" not in done.output + repr(done.exception)


@pytest.mark.parametrize("command", ["worker", "drain", "chat"])
def test_without_a_key_it_needs_a_model_and_says_which_there_are(command: str, tmp_path: Path) -> None:
    store = "postgresql+psycopg://127.0.0.1/safi" if command == "worker" else f"sqlite:///{tmp_path}/safi.db"
    done = CliRunner().invoke(app, [command, "--store", store, "--log", str(tmp_path / "log.json")])
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"safi {command}: model: expected a chat model or the name of one")
    assert "OPENAI_API_KEY" in line
    assert "'offline'" in line
    assert not list(tmp_path.iterdir())


def test_what_it_cannot_use_is_told_without_a_trace(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["chat", "--values", "nonsense", "--store", f"sqlite:///{tmp_path}/safi.db"])
    assert (done.exit_code, "safi chat: values: expected one of" in done.stderr) == (2, True)
