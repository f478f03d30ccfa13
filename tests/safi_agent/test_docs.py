"""Every open point of the specification has its row, and what the pages count is as many as they say."""

import json
import re
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage

from safi_agent import Sampling

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safi.md").read_text()


def test_all_open_points_are_answered() -> None:
    table = PAGE.partition("| open point |")[2].partition("Guarantees beyond the specification")[0]
    assert len(re.findall(r"^\| (?!-)", table, re.MULTILINE)) == 25


def test_the_page_on_the_log_says_what_each_key_of_a_line_is_and_no_other(make: Any, tmp_path: Path) -> None:
    safi = make(sampling=Sampling(share=1 - 2**-50))
    picture: Any = {"type": "image", "url": "https://example.com/p.png"}
    safi.invoke({"prompt": [HumanMessage([{"type": "text", "text": "q"}, picture])], "metadata": {"id": 1}})
    safi.drain()
    table = (ROOT / "docs" / "log.md").read_text().partition("## A line")[2].partition("## The chain")[0]
    (record,) = map(json.loads, (tmp_path / "log.json").read_text().splitlines())
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(record)


def test_the_thirteen_doors_are_thirteen() -> None:
    doors = (ROOT / "tests" / "safi_agent" / "observers.py").read_text()
    assert len(re.findall(r"^def by_", doors, re.MULTILINE)) == 13


def test_the_ways_to_hide_a_word_from_an_agents_doors_are_as_many_as_the_page_says() -> None:
    files = {"as": "test_middleware_isolation.py", "by": "agents/channels.py"}
    texts = {kind: (ROOT / "tests" / "safi_agent" / file).read_text() for kind, file in files.items()}
    counted = [len(re.findall(rf"^def {kind}_", text, re.MULTILINE)) for kind, text in texts.items()]
    assert "{} ways to hide a word, {} output paths".format(*counted) in (ROOT / "docs" / "agents.md").read_text()
