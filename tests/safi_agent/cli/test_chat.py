"""``safi chat``."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safi_agent.cli import app
from safi_agent.cli.chat import talk, turn
from tests.safi_agent.fakes import Fake, approve, in_turn


def test_a_conversation_shows_answers_ledgers_and_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = "Who decides on my permit?\nA bomb?\n\n"
    said = CliRunner().invoke(app, ["chat", "--model", "offline", "--values", "civic"], input=asked)
    assert said.exit_code == 0, said.output
    assert "offline rehearsal" in said.output
    assert "Will: approve" in said.output
    assert "Equal Treatment" in said.output
    assert "Spirit: " in said.output
    assert "I can't answer that here." in said.output
    assert "Will: violation" in said.output
    assert len((tmp_path / "saf-spirit-log.json").read_text().splitlines()) == 2


def test_a_models_words_do_not_steer_the_terminal(make: Any, tmp_path: Path) -> None:
    steering = "\x1b]0;mine\x07\x1b[2Jone\ttwo\nthree\x9b31m\x7f"
    safi = make(Fake(intellect=steering, will=approve().replace("fine", r"\u001b[2J")))
    shown = talk(safi, "q", tmp_path / "log.json")
    assert "one\ttwo\nthree" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x7f", "\x9b", "\r"}


def test_a_turn_that_fails_does_not_end_the_conversation(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(intellect=in_turn(RuntimeError("down"), "Back.")))
    assert turn(safi, "a", tmp_path / "log.json").startswith("This turn failed: ")
    assert turn(safi, "a", tmp_path / "log.json").startswith("Back.")


def test_an_answer_is_shown_though_the_log_cannot_be_written(make: Any, tmp_path: Path) -> None:
    assert turn(make(log=None), "a", tmp_path / "log.json") == "An answer."


def test_a_store_that_fails_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    prompts = iter(["a canary"])

    def asked(_: str) -> str:
        with sqlite3.connect("safi.db") as connection:
            connection.execute("DROP TABLE IF EXISTS safi_turns")
        connection.close()
        return next(prompts, "")

    monkeypatch.setattr("builtins.input", asked)
    said = CliRunner().invoke(app, ["chat", "--model", "offline", "--values", "civic"])
    assert said.exit_code == 0
    assert "This turn failed: The turn could not be made durable (OperationalError)" in said.stdout
    assert "canary" not in said.output
