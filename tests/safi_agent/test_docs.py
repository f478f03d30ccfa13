"""Every test that the pages on SAFi name is there, and every open point of the specification has its row."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safi.md").read_text()
POSTGRES = (ROOT / "docs" / "postgres.md").read_text()


def test_every_test_that_the_pages_name_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 50
    on_postgres = re.findall(r"`([\w/]+\.py)::(\w+)`", POSTGRES)
    assert len(on_postgres) > 10
    for file, name in named + on_postgres:
        assert f"def {name}(" in (ROOT / "tests" / "safi_agent" / file).read_text(), (file, name)


def test_all_open_points_are_answered() -> None:
    table = PAGE.partition("| open point |")[2].partition("And beyond it")[0]
    assert len(re.findall(r"^\| (?!-)", table, re.MULTILINE)) == 25


def test_the_thirteen_doors_are_thirteen() -> None:
    doors = (ROOT / "tests" / "safi_agent" / "test_doors.py").read_text()
    assert len(re.findall(r"^def by_", doors, re.MULTILINE)) == 13


def test_the_block_on_postgres_runs_there(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", POSTGRES, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFI_STORE", database)
    exec(compile(block, "postgres.md", "exec"), {"__name__": "__page__"})
    assert capsys.readouterr().out.endswith("1 audit finished\n")
