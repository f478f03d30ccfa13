"""Every command that a page names is one that is there, with the options that the page gives it."""

import argparse
import re
import runpy
import shlex
import tomllib
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

import safi_agent.cli
import sal_cli.sal
from tests.docs.pages import PAGES, ROOT, SHELL, blocks, inline, name

APPS = {"sal": sal_cli.sal.app, "safi": safi_agent.cli.app}
OWN = ("experiments", "benchmarks")
LIGHTNING = ("experiments.continual.cli",)  # its options are those of the file and of the classes in it
ASSIGNED = re.compile(r"\w+=")


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a piece of shell, without prompts, comments and assignments."""
    script = re.sub(r"(^|\s)#.*", r"\1", script.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if word[0] not in ";&|()\n":
            words.append(word)
            continue
        while words and (words[0] in ("$", "if", "!", "then", "while", "do") or ASSIGNED.match(words[0])):
            words.pop(0)
        if words:
            yield words
        words = []


def named(page: Path) -> list[list[str]]:
    """Commands in the page's blocks and in its sentences."""
    spans = [token.content for token in inline(page) if token.type == "code_inline"]
    scripts = [*blocks(page, *SHELL), *spans]
    return [words for script in scripts if is_shell(script) for words in commands(script)]


def is_shell(script: str) -> bool:
    return bool(re.search(r"^\s*(\$ )?(sal|safi|python|scripts/\w+|\w+=\S+ \S+)( |$)", script, re.MULTILINE))


def options(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}


def known_to_typer(words: list[str]) -> set[str]:
    """The options of the command that these words call."""
    command = typer.main.get_command(APPS[words[0]])
    for word in words[1:]:
        if not hasattr(command, "commands"):
            break
        if not word.startswith("-"):
            assert word in command.commands, f"{word} is no command of {words[0]}"
            command = command.commands[word]
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


class Asked(Exception):
    """Carries the parser of a module that was about to read its command line."""


def known_to_module(module: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The options of ``python -m module``, which is run until it reads them."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Asked(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # other tests import it too
        with pytest.raises(Asked) as caught:
            runpy.run_module(module, run_name="__main__")
    return set(caught.value.args[0]._option_string_actions)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_commands_are_there_with_their_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in named(page):
        if words[0] in APPS:
            assert options(words) <= known_to_typer(words), words
        elif words[0].startswith("scripts/"):
            assert (ROOT / words[0]).is_file(), words
        elif words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), words
            if words[2] in LIGHTNING:
                assert (ROOT / words[words.index("--config") + 1]).is_file(), words
            elif words[2].split(".")[0] in OWN and (given := options(words[3:])):
                assert given <= known_to_module(words[2], monkeypatch), words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_extras_it_asks_for_are_there(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for asked in re.findall(r"sal-lightning\[([\w,]+)\]", page.read_text()):
        assert set(asked.split(",")) <= set(extras), asked


def test_a_script_is_taken_apart() -> None:
    script = "A=1 safi report x.json \\\n  --newest 5 # all\n$ sal report RUN && safi verify 'a: b'; echo done | cat\n"
    assert [" ".join(words) for words in commands(script)] == [
        "safi report x.json --newest 5",
        "sal report RUN",
        "safi verify a: b",
        "echo done",
        "cat",
    ]


def test_wrong_options_and_commands_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--newset" not in known_to_typer(["safi", "report", "--newset", "5"])
    with pytest.raises(AssertionError, match="reprot"):
        known_to_typer(["safi", "reprot"])
    assert {"--lines", "--table"} <= known_to_module("benchmarks.log", monkeypatch)


def test_the_readme_names_the_two_commands() -> None:
    assert {"scripts/demo", "scripts/test"} <= {words[0] for words in named(ROOT / "README.md")}
