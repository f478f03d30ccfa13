"""``safi replay``: what it says, where it finds value sets, and how it ends."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safi_agent import create_safi_chain
from safi_agent.cli import app
from tests.safi_agent.fakes import GATED, Fake, approve, ledger

LOG = "saf-spirit-log.json"


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Fake(will=approve(["No Harm"]), conscience=ledger(GATED))
    with create_safi_chain(model, GATED, beta=0.7) as safi:
        for asked in "abc":
            safi.invoke(asked)
            safi.drain()


def replay(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["replay", *arguments])
    return done.exit_code, done.output


def change(at: int, **changed: Any) -> None:
    lines = [json.loads(line) for line in Path(LOG).read_text().splitlines()]
    lines[at] |= changed
    Path(LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_value_sets_come_from_the_store() -> None:
    assert replay() == (0, f"{LOG}: 3 lines, all figures follow from their ledgers.\n")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a store."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.mark.usefixtures("elsewhere")
def test_or_from_files_or_from_a_store_that_is_named() -> None:
    assert replay(f"../{LOG}")[0] == 2
    assert replay(f"../{LOG}", "--store", "sqlite:///../safi.db")[0] == 0
    Path("gated.yaml").write_text(GATED.model_dump_json())  # JSON is YAML
    assert replay(f"../{LOG}", "--values", "gated.yaml")[0] == 0
    code, said = replay(f"../{LOG}", "--store", "sqlite:///gone.db", "--values", "gated.yaml")
    assert (code, "expected an existing database" in said) == (2, True)


@pytest.mark.usefixtures("elsewhere")
def test_a_set_that_was_edited_is_not_the_one() -> None:
    Path("gated.yaml").write_text(GATED.model_copy(update={"description": "Other."}).model_dump_json())
    code, said = replay(f"../{LOG}", "--values", "gated.yaml")
    assert (code, "expected the value set" in said) == (2, True)


def test_a_set_that_was_edited_in_the_store_is_not_the_one() -> None:
    with sqlite3.connect("safi.db") as database:
        database.execute("UPDATE safi_value_sets SET body = replace(body, 'No.', 'Oh.')")
    database.close()
    code, said = replay()
    assert (code, "expected the value set" in said) == (2, True)


def test_a_mu_that_was_edited_in_the_store_follows_from_no_ledger() -> None:
    with sqlite3.connect("safi.db") as database:
        database.execute("UPDATE safi_memory SET mu = replace(mu, '0.', '0.9')")
    database.close()
    with create_safi_chain(Fake(will=approve(["No Harm"]), conscience=ledger(GATED)), GATED, beta=0.7) as safi:
        safi.invoke("d")
    code, said = replay()
    assert code == 1
    assert f"{LOG}:4: turn 4 of 'gated': mu is" in said


def test_a_figure_that_does_not_follow_is_named() -> None:
    change(1, spiritScore=9)
    code, said = replay()
    assert code == 1
    assert f"{LOG}:2: turn 2 of 'gated': spiritScore is 9, but its ledger gives 7\n" in said


def test_a_beta_out_of_range_is_refused() -> None:
    code, said = replay("--beta", "1")
    assert (code, "beta: expected a number in [0, 1), got 1.0" in said) == (2, True)


def test_an_older_log_is_computed_with_the_beta_that_is_told() -> None:
    Path("gated.yaml").write_text(GATED.model_dump_json())
    for at in range(3):
        change(at, measure={})
    assert replay("--values", "gated.yaml", "--beta", "0.7")[0] == 0
    assert replay("--values", "gated.yaml")[0] == 1


def test_a_store_that_cannot_be_read_is_no_figure_and_no_trace() -> None:
    with sqlite3.connect("safi.db") as connection:
        connection.execute("DROP TABLE safi_value_sets")
    connection.close()
    code, said = replay()
    assert (code, "store: expected a database that can be read, got OperationalError" in said) == (2, True)


def test_a_url_that_is_none_is_told_without_a_trace() -> None:
    code, said = replay("--store", "sqlite:s3cret")
    assert (code, "store: expected a database that can be opened, got ArgumentError" in said) == (2, True)
    assert "s3cret" not in said
