"""The page holds what it should, in bounds, and nothing that a text could make of it."""

import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safi_agent.calibration.card import Card
from safi_agent.calibration.judging import Judgement
from safi_agent.calibration.labels import Labels
from safi_agent.calibration.measurement import make_card
from safi_agent.report.entries import read
from safi_agent.report.page import MOST_TEXT, about, clipped, counts, embedded, page, to_json, within, write_page
from safi_agent.report.review import review
from tests.safi_agent.calibration.cases import labelled
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.report.records import HOSTILE, LOW, REFUSED, hostile, record, various, write

JSON = st.recursive(
    st.none() | st.text() | st.integers(-9, 9), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


class Tags(HTMLParser):
    """Which elements a page opens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)


def tags(text: str) -> list[str]:
    """Without plotly's own script, which takes a parser in Python long."""
    return Tags(re.sub(r"<script>.*?</script>", "<script></script>", text, count=1, flags=re.DOTALL)).found


def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The elements of a page without hostile texts."""
    return tags(page(review(write(tmp_path_factory.mktemp("plain") / "log.json", [record(1)]))))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_an_element_and_every_text_arrives(tmp_path: Path, plain: list[str], text: str) -> None:
    made = page(review(write(tmp_path / "log.json", [hostile(text)])))
    assert tags(made) == plain
    (turn,) = data(made)["records"]
    assert turn["record"] == hostile(text)


def test_the_name_of_the_log_is_text_too(tmp_path: Path) -> None:
    made = page(review(write(tmp_path / "<script>alert(1)<&.json", [record(1)])))
    assert "<title>Audit of &lt;script&gt;alert(1)&lt;&amp;.json</title>" in made


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_embedded_json_is_the_same_json_without_markup(anything: Any) -> None:
    text = embedded(anything)
    assert json.loads(text) == anything
    assert not set(text) & set("<>&")
    assert text.isascii()


def test_longest_texts_are_cut_and_it_is_said_and_depth_and_oddities_are_bounded() -> None:
    assert clipped("a" * (MOST_TEXT + 5)) == f"{'a' * MOST_TEXT}…[+5 characters]"
    deep: Any = "end"
    for _ in range(900):
        deep = {"a": [deep]}
    assert "end" not in json.dumps(clipped(deep))
    assert clipped({"a": [float("nan"), float("-inf"), 1.5, True, None]}) == {"a": [None, None, 1.5, True, None]}


def test_records_that_do_not_fit_are_left_out_the_newest_stay() -> None:
    turns = [to_json(read(record(i, userPrompt="x" * (10 if i != 2 else 5000)), i, 6, 0.4)) for i in (1, 2, 3)]
    assert [turn["turn"] for turn in within(turns, 4000)] == [1, 3]


def test_what_is_on_the_page_and_what_is_not_is_said(tmp_path: Path) -> None:
    log = write(tmp_path / "log.json", [*(record(i, **LOW) for i in range(1, 1201)), "torn"])
    found = review(log, newest=200)
    said = about(found, [to_json(entry) for entry in found.entries()])
    assert said == (
        "2026-03-01 to 2026-03-01. Counts and plots are of all 1,200 turns; 200 can be read below: the newest, and the "
        "newest to review (1,000 older ones are only counted). Lines that could not be read: 1."
    )
    assert said in page(found)


def test_violations_in_shadow_mode_are_not_counted_as_refused(tmp_path: Path) -> None:
    left = {"willDecision": "violation", "flags": ["shadow"]}
    lines = [record(1), record(2, **REFUSED), record(3, **left), record(4, **left)]
    contents = review(write(tmp_path / "l.json", lines))
    numbers = {tile["name"]: tile["number"] for tile in counts(contents)}
    assert (numbers["refused"], numbers["violations in shadow mode"], numbers["to review"]) == (1, 2, 3)
    enforced = counts(review(write(tmp_path / "m.json", lines[:2])))
    assert "violations in shadow mode" not in {tile["name"] for tile in enforced}


@pytest.mark.slow
def test_ten_times_as_many_lines_make_a_page_of_the_same_size(tmp_path: Path) -> None:
    kept = [f"{json.dumps(r)}\n" for r in various(1000, seed=2)]
    log, to = tmp_path / "log.json", tmp_path / "page.html"
    sizes = []
    for lines in (2000, 20_000):
        log.write_text("".join(kept * (lines // 1000)))
        assert write_page(log, to).turns == lines
        sizes.append(to.stat().st_size)
        held = data(to.read_text())
        assert held["counts"][0] == {"name": "turns", "number": lines}
        assert 500 < len(held["records"]) <= 1000
        assert held["records"][0]["line"] == lines
    assert sizes[1] < 1.05 * sizes[0] < 10_000_000


@pytest.mark.slow
def test_texts_of_any_size_make_a_page_under_a_bound(tmp_path: Path) -> None:
    big = record(1, userPrompt="p" * 10**5, intellectDraft="<" * 10**5, metadata={"m": ["&" * 10**5] * 3})
    log = write(tmp_path / "log.json", [big] * 70)
    write_page(log, tmp_path / "page.html")
    assert 20_000_000 < (tmp_path / "page.html").stat().st_size < 40_000_000


def test_a_chains_own_log_becomes_a_page_for_its_owner_alone(make: Any, tmp_path: Path) -> None:
    safi = make(Fake())
    safi.batch(["a", "b", "c"])
    safi.drain()
    found = write_page(tmp_path / "log.json", tmp_path / "page.html")
    assert (found.turns, found.unread, found.flagged) == (3, 0, 0)
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600
    held = data((tmp_path / "page.html").read_text())["records"]
    assert {turn["record"]["userPrompt"] for turn in held} == set("abc")


def test_a_log_of_several_files_is_one_log_with_its_lines_counted_on(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(), log_max_bytes=4096)
    for number in range(1, 13):
        safi.invoke(f"question {number}")
        safi.drain()
    assert (tmp_path / "log.json.2").is_file()
    found = write_page(tmp_path / "log.json", tmp_path / "page.html")
    assert (found.turns, found.unread) == (12, 0)
    held = data((tmp_path / "page.html").read_text())["records"]
    assert [turn["line"] for turn in held] == [turn["record"]["line"] for turn in held] == list(range(12, 0, -1))
    assert [turn["record"]["userPrompt"] for turn in held] == [f"question {number}" for number in range(12, 0, -1)]


def test_a_page_that_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    log = write(tmp_path / "log.html", [record(1)])
    before = log.read_bytes()
    with pytest.raises(ValueError, match="to: expected another file than the log"):
        write_page(log, log)
    with pytest.raises(ValueError, match=r"to: expected a file that ends in \.html, got '.*log\.key'"):
        write_page(log, tmp_path / "log.key")
    with pytest.raises(ValueError, match="to: expected a file in an existing folder"):
        write_page(log, tmp_path / "none" / "page.html")
    with pytest.raises(ValueError, match="log: expected an existing file"):
        write_page(tmp_path / "none.json", tmp_path / "page.html")
    assert log.read_bytes() == before
    assert not (tmp_path / "page.html").exists()


def made_card() -> Card:
    rows = labelled(40)
    fields = {"decision": "approve", "code": "judge", "findings": [], "will_model": "m", "seconds": 0.5}
    judged = {row.case: Judgement.model_validate({"case": row.case.id, **fields}) for row in rows}
    judges = {"will": "w", "conscience": "c", "prompts": "p-hash"}
    return make_card(Labels(tuple(rows), "l-hash"), "<b>l</b>.jsonl", THREE, judges, judged, resamples=5)


def test_a_calibration_card_is_shown_and_what_it_is_not_of_is_said(tmp_path: Path) -> None:
    models = [{"will": name, "conscience": "c"} for name in ("m", "w", "<i>other</i>", "<i>other</i>")]
    log = write(tmp_path / "log.json", [record(n, models=each) for n, each in enumerate(models, 1)])
    (tmp_path / "card.json").write_text(made_card().model_dump_json())
    write_page(log, tmp_path / "page.html", card=tmp_path / "card.json")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "<h2>Agreement of the judges with people</h2>" in text
    assert all(part in text for part in ("l-hash", "p-hash", "&lt;b&gt;l&lt;/b&gt;.jsonl", "<td>Truth</td>"))
    notes = re.findall(r"<li>Of other judges: (.*?)</li>", text)
    assert len(notes) == 1
    assert notes[0].startswith("2 turns of this log had &#x27;&lt;i&gt;other&lt;/i&gt;&#x27; as Will")
    assert "Agreement of the judges" not in page(review(log))


def test_what_is_no_card_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    log = write(tmp_path / "log.json", [record(1)])
    with pytest.raises(ValueError, match="expected a calibration card"):
        write_page(log, tmp_path / "page.html", card=log)
    assert not (tmp_path / "page.html").exists()


def test_records_without_models_or_with_odd_ones_are_counted_where_they_can_be(tmp_path: Path) -> None:
    odd = [{"will": ["m"]}, "m", None, {"will": "m", "conscience": 3}]
    log = write(tmp_path / "log.json", [record(n, models=each) for n, each in enumerate(odd, 1)])
    assert review(log).models == {("will", "m"): 1}
