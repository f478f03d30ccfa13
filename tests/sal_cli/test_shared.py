"""What ``sal`` and ``safi`` have in common: version, help, errors, Ctrl-C."""

import re
from collections.abc import Iterator
from importlib.metadata import version

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

import safi_agent.cli
import sal_cli.sal
from sal_cli.shared import one_line

APPS = {"sal": sal_cli.sal.app, "safi": safi_agent.cli.app}


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command, with its program."""
    for name, app in APPS.items():
        yield (name,)
        group = get_command(app)
        assert isinstance(group, TyperGroup)
        for word, command in group.commands.items():
            yield name, word
            yield from ((name, word, inner) for inner in getattr(command, "commands", ()))


@pytest.mark.parametrize("name", APPS)
def test_the_version_is_that_of_the_distribution(name: str) -> None:
    done = CliRunner().invoke(APPS[name], ["--version"])
    assert (done.exit_code, done.output) == (0, f"sal-lightning {version('sal-lightning')}\n")


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_fits_60_columns_and_names_no_python_type(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(APPS[words[0]], [*words[1:], "--help"], terminal_width=60, prog_name=words[0])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 60
    assert not re.search(r"<\w+|\b(TEXT|INTEGER|FLOAT|PATH)\b", done.output)
    listed = done.output.partition("Commands:")[2]
    assert "..." not in listed  # a summary that is cut off


def test_pages_are_written_to_out_by_every_command() -> None:
    for name, app in APPS.items():
        group = get_command(app)
        assert isinstance(group, TyperGroup)
        options = {o for command in group.commands.values() for p in command.params for o in p.opts}
        assert ("--out" in options, "--to" in options) == (True, False), name


def test_an_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, one_line("sal report", ValueError):
        raise ValueError("expected a run, got none.")
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == "sal report: expected a run, got none.\n"


def test_another_error_is_not_hidden() -> None:
    with pytest.raises(KeyError), one_line("sal report", ValueError):
        raise KeyError("x")


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, one_line("safi drain", interrupted="The same command continues."):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "\nsafi drain: stopped. The same command continues.\n"
