"""Every test that the pages on SAFi name is there, and every open point of the specification has its row."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safi.md").read_text()
POSTGRES = (ROOT / "docs" / "postgres.md").read_text()


@pytest.mark.parametrize(("page", "least"), [("safi.md", 50), ("agents.md", 20), ("postgres.md", 10)])
def test_every_test_that_the_page_names_is_there(page: str, least: int) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / page).read_text())
    assert len(named) > least
    for file, name in named:
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


def test_the_ways_to_hide_a_word_from_an_agents_doors_are_as_many_as_the_page_says() -> None:
    doors = (ROOT / "tests" / "safi_agent" / "test_middleware_doors.py").read_text()
    counted = [len(re.findall(rf"^def {kind}_", doors, re.MULTILINE)) for kind in ("as", "by")]
    assert "{} ways to hide a word, {} doors".format(*counted) in (ROOT / "docs" / "agents.md").read_text()
