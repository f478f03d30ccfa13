"""Every test that the page on SAFi names is there, and every open point of the specification has its row."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safi.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 50
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / "safi_agent" / file).read_text(), (file, name)


def test_all_open_points_are_answered() -> None:
    table = PAGE.partition("| open point |")[2].partition("And beyond it")[0]
    assert len(re.findall(r"^\| (?!-)", table, re.MULTILINE)) == 25


def test_the_thirteen_doors_are_thirteen() -> None:
    doors = (ROOT / "tests" / "safi_agent" / "test_doors.py").read_text()
    assert len(re.findall(r"^def by_", doors, re.MULTILINE)) == 13
