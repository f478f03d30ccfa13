"""``safi chat``."""

import io
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from select import select
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from safi_agent.cli import app
from safi_agent.cli.chat import converse
from safi_agent.cli.conversation import Conversation
from safi_agent.cli.line_input import without_controls
from tests.safi_agent.fakes import THREE, Fake, approve, in_turn, ledger

ROOT = Path(__file__).parents[3]


def chat(asked: str, *arguments: str, columns: int = 80) -> Any:
    command = ["chat", "--model", "offline", "--values", "civic", *arguments]
    return CliRunner().invoke(app, command, input=asked, env={"COLUMNS": str(columns)})


def reader(*lines: str) -> Callable[[], str]:
    """Reads these lines, one at each call."""
    left = iter(lines)

    def read() -> str:
        for line in left:
            return line
        raise EOFError

    return read


def shown(safi: Any, *lines: str) -> str:
    """What a conversation of these lines prints."""
    out = io.StringIO()
    converse(Conversation(safi), safi, reader(*lines), Console(file=out, width=100))
    return out.getvalue()


@pytest.mark.parametrize("columns", [80, 60])
def test_a_conversation_shows_answers_ledgers_and_refusals(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = chat("Who decides on my permit?\n\nA bomb?\n/quit\nnever asked\n", columns=columns)
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.replace("│", " ").split())
    for expected in (
        "Model offline rehearsal",
        "Values civic: 5 weighted values, 1 hard gate",
        "Leave Ctrl-D or /quit",
        "approve: [offline rehearsal]",
        "Equal Treatment +1 0.50",
        "Spirit score 7 of 10, drift no baseline yet",
        "Refused",
        "I can't answer that here.",
        "violation: [offline rehearsal]",
        "2 turns. 'safi verify' checks the log",
    ):
        assert expected in words, expected
    assert "never asked" not in words
    assert max(map(len, done.output.splitlines())) <= columns
    assert len((tmp_path / "saf-spirit-log.json").read_text().splitlines()) == 2


def test_each_turn_is_given_the_turns_before_it_until_a_new_conversation(make: Any) -> None:
    model = Fake(intellect=in_turn("Paris.", "In 987.", "What?"))
    shown(make(model), "The capital?", "Since when?", "/new", "Who?")
    asked = [[str(m.text) for m in messages[1:]] for messages in model.asked("intellect")]
    assert asked == [["The capital?"], ["The capital?", "Paris.", "Since when?"], ["Who?"]]


def test_a_turn_that_fails_is_left_out_of_the_conversation(make: Any) -> None:
    model = Fake(intellect=in_turn("Yes.", RuntimeError("down"), "Back."))
    said = shown(make(model), "a", "b", "c")
    assert "This turn failed: The model returned no answer (RuntimeError)." in said
    assert "Back." in said
    assert [str(m.text) for m in model.asked("intellect")[-1][1:]] == ["a", "Yes.", "c"]


def test_a_models_words_do_not_steer_the_terminal(make: Any) -> None:
    steering = "\x1b]0;mine\x07\x1b[2Jone\ttwo\nthree\x9b31m\x7f [bold]loud[/bold]"
    said = shown(make(Fake(intellect=steering, will=approve().replace("fine", r"\u001b[2J"))), "q")
    assert "[bold]loud[/bold]" in said
    assert not set(said) & {"\x1b", "\x07", "\x7f", "\x9b", "\r"}


def test_control_characters_reach_neither_the_model_nor_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = chat("wh\x1b[D\x1b]0;title\x07at\x00 is\x9b it\x7f?\n")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "saf-spirit-log.json").read_text())
    assert record["userPrompt"] == "what is it?"
    assert "“what is it?”" in record["finalOutput"]


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("\x1b[200~a\tb\r\nc\x1b[201~", "a\tb\nc"),
        ("\x1b[1;5Cword\x1bb", "word"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (
            "caf\u00e9 \U0001f469\u200d\U0001f52c \u0645\u06cc\u200c\u062e",
            "caf\u00e9 \U0001f469\u200d\U0001f52c \u0645\u06cc\u200c\u062e",
        ),
        ("\udcff", ""),
    ],
)
def test_what_a_terminal_sends_besides_text_is_removed(typed: str, kept: str) -> None:
    assert without_controls(typed) == kept


@pytest.mark.slow
def test_an_unreachable_model_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from safi_agent.cli import app; app()", "chat"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "x", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, input="hi\nagain\n", capture_output=True, text=True)
    assert done.returncode == 1
    expected = r"safi chat: The model returned no answer \(\w*ConnectionError\)\. --verbose shows the cause\.\n"
    assert re.fullmatch(expected, done.stderr)


def test_a_wrong_key_ends_it_and_a_busy_model_does_not(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Status(Exception):
        def __init__(self, code: int) -> None:
            self.status_code = code

    said = shown(make(Fake(intellect=in_turn(Status(429), "Now."))), "a", "b")
    assert "Status, status 429" in said
    assert "Now." in said
    from typer import Exit

    with pytest.raises(Exit) as ended:
        shown(make(Fake(intellect=Status(401))), "a", "b")
    assert ended.value.exit_code == 1
    assert "Status, status 401" in capsys.readouterr().err


def test_an_audit_that_fails_is_told(make: Any) -> None:
    safi = make(Fake(conscience=in_turn(*[RuntimeError("down")] * 3, ledger(THREE))))
    said = " ".join(shown(safi, "a").split())
    assert "An answer." in said
    assert "The audit failed (RuntimeError, 3 attempts). 'safi reaudit' repeats it." in said


def test_an_answer_and_its_audit_are_shown_without_a_log(make: Any) -> None:
    said = shown(make(log=None), "a")
    assert "An answer." in said
    assert "Truth" in said


def test_a_store_that_fails_is_told_in_a_line(make: Any, tmp_path: Path) -> None:
    safi = make()
    with sqlite3.connect(tmp_path / "safi.db") as connection:
        connection.execute("DROP TABLE safi_turns")
    connection.close()
    said = " ".join(shown(safi, "a canary").split())
    assert "This turn failed: The turn could not be made durable (OperationalError)" in said
    assert "canary" not in said


class Terminal:
    """``safi chat`` in a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self._main, other = pty.openpty()
        termios.tcsetwinsize(other, (24, 80))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        command = [sys.executable, "-c", "from safi_agent.cli import app; app()", "chat"]
        self.process = subprocess.Popen(
            [*command, "--model", "offline", "--values", "civic"],
            cwd=folder,
            env=env,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)
        self.output = ""

    def send(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read until the terminal has shown this text after what it had shown before.

        Raises:
            AssertionError: it was not shown within 60 s.
        """
        seen, until = "", time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < until, seen
            if not select([self._main], [], [], 1)[0]:
                continue
            try:
                got = os.read(self._main, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                got = ""
            assert got, f"{text!r} was not shown, but {seen!r}"
            seen += got
            if "\x1b[6n" in got:  # asks where the cursor is
                self.send("\x1b[1;1R")
        self.output += seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    started = Terminal(tmp_path)
    yield started
    started.close()


@pytest.mark.slow
def test_lines_can_be_edited_and_called_up_again_and_ctrl_c_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for("you:")
    terminal.send("Who deXcides?" + "\x1b[D" * 6 + "\x7f" + "\r")  # six to the left, then backspace
    terminal.wait_for("Audit")
    terminal.wait_for("you:")
    terminal.send("half a line\x03")
    terminal.wait_for("Ctrl-D or /quit ends the conversation.")
    terminal.wait_for("you:")
    terminal.send("\x1b[A\r")  # the line before
    terminal.wait_for("Audit")
    terminal.wait_for("you:")
    terminal.send("\x04")
    terminal.wait_for("2 turns.")
    assert terminal.process.wait(30) == 0
    lines = (tmp_path / "saf-spirit-log.json").read_text().splitlines()
    assert [json.loads(line)["userPrompt"] for line in lines] == ["Who decides?"] * 2
    assert sorted(file.name for file in tmp_path.iterdir() if "hist" in file.name) == []
