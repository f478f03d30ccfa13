"""The commands ``sal`` and ``safi`` start at once, and say what to install where it is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import safi_agent

START = """
import atexit, sys
sys.modules.update(dict.fromkeys({without!r}))
atexit.register(lambda: print("Loaded:", *sorted({heavy!r} & set(sys.modules))))
sys.argv = {argv!r}
import sal_cli
sal_cli.{name}()
"""
HEAVY = {"torch", "lightning", "sal_lightning", "langchain", "langchain_core", "sqlalchemy", "plotly", "wandb"}


def started(name: str, *args: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    code = START.format(without=without, heavy=HEAVY - {*without}, argv=[name, *args], name=name)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), [("sal", "dashboard"), ("safi", "verify")])
def test_help_needs_nothing_that_takes_time_to_load(name, command):
    done = started(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: {name}" in done.stdout
    assert command in done.stdout
    assert done.stdout.endswith("Loaded:\n")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), [("sal", "dashboard"), ("safi", "verify-proof")])
def test_the_shell_completes_its_commands(name, command):
    env = {**os.environ, f"_{name.upper()}_COMPLETE": "complete_bash", "COMP_WORDS": f"{name} ", "COMP_CWORD": "1"}
    code = f"import sys; sys.argv = [{name!r}]; import sal_cli; sal_cli.{name}()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert command in done.stdout.split(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "extra"), [("sal", "report"), ("safi", "safi")])
def test_without_its_extra_a_command_says_in_one_line_what_to_install(name, extra):
    done = started(name, "--help", without=("typer",))
    assert (done.returncode, done.stdout) == (1, "Loaded:\n")
    assert done.stderr == f'{name}: typer not installed: pip install "sal-lightning[{extra}]"\n'


@pytest.mark.slow
def test_sal_report_without_plotly_says_what_to_install(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("sal/step\n1\n")
    done = started("sal", "report", str(tmp_path), "--out", str(tmp_path / "page.html"), without=("plotly",))
    assert done.returncode == 2
    assert done.stderr == 'sal report: plotly not installed: pip install "sal-lightning[report]".\n'
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_safi_agent_names_all_that_is_missing_and_the_extra():
    code = "import sys; sys.modules.update(dict.fromkeys(['langchain', 'sqlalchemy'])); import safi_agent"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = 'ImportError: langchain, sqlalchemy not installed: pip install "sal-lightning[safi]"'
    assert done.stderr.splitlines()[-1] == expected


def test_the_entry_points_are_these_functions():
    import tomllib

    project = tomllib.loads((Path(safi_agent.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"sal": "sal_cli:sal", "safi": "sal_cli:safi"}
