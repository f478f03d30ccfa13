"""``safi show``: what it prints, and how it ends."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import pytest
from typer.testing import CliRunner

from safi_agent.cli import app
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, approve, in_turn, ledger


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/safi.db"


def show(*arguments: str) -> tuple[int, str]:
    """The command as in another process: with a store of its own, which it closes at the end."""
    elsewhere = patch("safi_agent.audit.finished.this_process", lambda: "another process")
    with elsewhere, patch("safi_agent.store._open", WeakValueDictionary()):
        done = CliRunner().invoke(app, ["show", *arguments], env={"COLUMNS": "60"})
    return done.exit_code, done.output


def invoke(safi: Any, prompt: Any = "q") -> str:
    return str(safi.invoke(prompt).response_metadata["safi"]["turnId"])


def test_it_shows_answer_ruling_ledger_and_figures_in_60_columns(make: Any, url: str) -> None:
    safi = make(Fake(intellect="Glass is collected on the first Monday of every month, and on Fridays in summer."))
    first = invoke(safi)
    safi.drain()
    turn = invoke(safi, "When is glass collected?")
    code, said = show(turn, "--store", url, "--timeout", "10")
    assert code == 0
    assert max(map(len, said.splitlines())) <= 60
    words = " ".join(said.split())
    for shown in (
        turn,
        "When is glass collected?",
        "Glass is collected on the first Monday of every month, and on Fridays in summer.",
        "approve",
        "score 7 of 10, drift 0.00",
        "Truth +0.5 0.80 so",
        "Thrift +0.5 0.80 so",
    ):
        assert shown in words
    assert "drift no baseline yet" in " ".join(show(first, "--store", url)[1].split())


def test_json_is_the_record(make: Any, url: str, tmp_path: Path) -> None:
    safi = make()
    turn = invoke(safi)
    safi.drain()
    code, said = show(turn, "--store", url, "--json")
    line = json.loads((tmp_path / "log.json").read_text())
    assert (code, json.loads(said)) == (0, {key: line[key] for key in line if key not in ("line", "prev", "mac")})
    assert said.count("\n") == 1


def test_a_refusal(make: Any, url: str) -> None:
    safi = make(Fake(will=VIOLATION))
    turn = invoke(safi)
    code, said = show(turn, "--store", url, "--timeout", "10")
    assert code == 0
    assert "not audited: no draft was approved" in " ".join(said.split())
    assert "Conf." not in said


def test_a_violation_in_shadow_mode(make: Any, url: str) -> None:
    safi = make(Fake(will=VIOLATION), will_mode="shadow")
    turn = invoke(safi)
    safi.drain()
    words = " ".join(show(turn, "--store", url)[1].split())
    assert "violation (shadow mode: the answer was returned)" in words
    assert "score 7 of 10" in words


def test_it_ends_with_1_where_there_is_no_audit_and_with_2_where_there_is_no_turn(make: Any, url: str) -> None:
    safi = make(Fake(will=approve(), conscience=in_turn(*[RuntimeError("down")] * 3, ledger(THREE)), audit_delay=0.2))
    turn = invoke(safi)
    assert show(turn, "--store", url) == (1, f"safi show: the audit of turn {turn!r} is not finished.\n")
    code, said = show(turn, "--store", url, "--timeout", "10")
    assert (code, "The audit failed (RuntimeError, 3 attempts)." in " ".join(said.split())) == (1, True)
    assert safi.reaudit([turn]) == 1
    assert show(turn, "--store", url, "--timeout", "10")[0] == 0
    code, said = show("nothing", "--store", url)
    assert (code, said.startswith("safi show: turn_id: expected the id of a turn in this store, got 'nothing'.")) == (
        2,
        True,
    )


def test_a_store_is_not_created(tmp_path: Path) -> None:
    code, said = show("any", "--store", f"sqlite:///{tmp_path}/gone.db")
    assert (code, "expected an existing database" in said) == (2, True)
    assert not (tmp_path / "gone.db").exists()


def test_escape_sequences_and_markup_are_shown_as_text(make: Any, url: str) -> None:
    safi = make(Fake(intellect="\x1b[31mred\x1b[0m [bold]loud[/bold]", conscience=ledger()))
    turn = invoke(safi)
    code, said = show(turn, "--store", url, "--timeout", "10")
    assert code == 0
    assert "\x1b" not in said
    assert "[bold]loud[/bold]" in said
