"""The page in a real browser: drawn, narrow and wide, and deaf to what hostile texts ask for."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safi_agent.calibration.labels import read_labels
from safi_agent.report.page import MOST_TEXT, write_page
from tests.browser import Browser, look
from tests.safi_agent.fakes import THREE
from tests.safi_agent.report.records import HOSTILE, hostile, record, various, write

pytestmark = pytest.mark.slow

ROWS = "return [...document.querySelectorAll('details.turn')].map(row => row.querySelector('.asked').textContent)"
OPEN = "for (const row of document.querySelectorAll('details')) row.open = true"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    yield from look()


def written(folder: Path, records: list[Any]) -> Path:
    write_page(write(folder / "log.json", records), folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    long = [{"value": f"Respect for {'very ' * i}long names", "score": 1 - i % 3, "confidence": 1} for i in range(15)]
    return written(folder, [*various(200, seed=3), record(201, conscienceLedger=long, spiritScore=2)])


def expected(page: Path, wanted: Any) -> list[str]:
    """The prompts of the turns that are wanted, the newest first, by reading the log anew."""
    records = [json.loads(line) for line in (page.parent / "log.json").read_text().splitlines()]
    return [r["userPrompt"] for r in reversed(records) if wanted(r)]


def flagged(r: dict[str, Any]) -> bool:
    unscored = r["spiritScore"] is None
    return unscored or r["spiritScore"] < 6 or r["drift"] > 0.4


def shown(window: Browser) -> list[str]:
    """Every prompt of the list, all of it."""
    while window.ask(
        "const more = document.getElementById('more'); if (more.hidden) return false; more.click(); return true"
    ):
        pass
    return list(window.ask(ROWS))


def click(window: Browser, group: str, text: str) -> None:
    script = "[...document.querySelectorAll(arguments[0])].find(b => b.textContent.startsWith(arguments[1])).click()"
    window.driver.execute_script(script, f"#{group} button", text)


def put(window: Browser, field: str, text: str) -> None:
    script = (
        "const f = document.getElementById(arguments[0]); f.value = arguments[1]; f.dispatchEvent(new Event('input'))"
    )
    window.driver.execute_script(script, field, text)


@pytest.mark.parametrize(("width", "theme"), [(400, "dark"), (1400, "light")])
def test_it_is_drawn_whole_and_asks_for_nothing(window: Browser, page: Path, width: int, theme: Any) -> None:
    window.goto(page, width, theme)
    window.ask(OPEN)
    window.wait()
    assert len(window.figures()) == 3
    assert all(window.figures())
    assert window.ask(
        "return [...document.querySelectorAll('.figure')].map(f => f.querySelectorAll('.trace, .hm').length > 0)"
    )
    assert window.cut_off() == []
    assert window.errors() == []
    assert window.requests() == []


def test_the_ledger_has_a_cell_for_each_value_and_stretch(window: Browser, page: Path) -> None:
    window.goto(page)
    assert window.ask("return document.querySelectorAll('.figure')[2].querySelectorAll('.ytick text').length") == 18
    assert window.ask("return document.querySelectorAll('.figure')[2].querySelectorAll('.hm image').length") == 1


def test_the_queue_is_what_is_to_be_reviewed_and_filters_narrow_it(window: Browser, page: Path) -> None:
    window.goto(page)
    assert shown(window) == expected(page, flagged)
    click(window, "reasons", "violation")
    assert shown(window) == expected(page, lambda r: r["willDecision"] == "violation")
    click(window, "reasons", "high drift")
    assert shown(window) == expected(page, lambda r: r["willDecision"] == "violation" or (r["drift"] or 0) > 0.4)
    click(window, "reasons", "violation")
    click(window, "reasons", "high drift")
    click(window, "reasons", "include turns")
    assert shown(window) == expected(page, lambda r: True)
    keys = window.ask("return [...document.getElementById('key').options].map(o => [o.text, o.value])")
    put(window, "key", dict(keys)["ward"])
    assert shown(window) == expected(page, lambda r: r["memoryKey"] == "ward")


def test_search_finds_all_words_in_prompts_answers_and_reasons(window: Browser, page: Path) -> None:
    window.goto(page)
    click(window, "reasons", "include turns")
    put(window, "search", "REASON 17")
    assert shown(window) == expected(
        page, lambda r: any("17" in row.get("reason", "") for row in r["conscienceLedger"])
    )
    put(window, "search", "nothing has this")
    assert shown(window) == []
    assert window.ask("return document.getElementById('count').textContent") == "0 found among 201 turns"


def test_orders(window: Browser, page: Path) -> None:
    window.goto(page)
    put(window, "order", "drift")
    assert sorted(shown(window)[:5]) == sorted(expected(page, lambda r: (r["drift"] or 0) > 0.4)[:5])
    put(window, "order", "score")
    assert shown(window)[0] == "question 201"


def test_a_turn_unfolds_to_its_whole_record(window: Browser, page: Path) -> None:
    window.goto(page)
    window.ask("document.querySelector('details.turn').open = true")
    window.wait()
    window.ask("document.querySelector('details.turn details').open = true")
    window.wait()
    told = window.ask("return document.querySelector('details.turn').textContent")
    for text in ("answer 201", "because", "fine", "Respect for very long names", '"turnId": "t-201"', "line 201"):
        assert text in told


def test_a_memory_key_can_be_taken_out_of_the_plots_and_stays_out_in_another_theme(window: Browser, page: Path) -> None:
    lines = "return document.querySelectorAll('.figure')[0].querySelectorAll('.scatter .js-line').length"
    window.goto(page)
    assert window.ask(lines) == 3
    click(window, "keys", "ward")
    window.wait()
    assert window.ask(lines) == 2
    window.ask("document.getElementById('theme').click()")
    window.wait()
    assert window.ask(lines) == 2


def test_hostile_texts_are_only_shown(window: Browser, tmp_path: Path) -> None:
    page = written(tmp_path, [hostile(text, i) for i, text in enumerate(HOSTILE, 1)])
    window.goto(page, 400)
    window.ask(OPEN)
    window.wait()
    window.ask(OPEN)
    window.wait()
    assert window.ask("return document.title") == "Audit of log.json"
    assert window.ask("return document.querySelectorAll('main img, main a, main iframe').length") == 0
    told = window.ask("return document.querySelector('#list').textContent.toWellFormed()")
    assert all(text in told for text in HOSTILE if text.isprintable())
    assert all(window.figures())
    assert (window.errors(), window.requests(), window.cut_off()) == ([], [], [])


LABEL = """
const [turn, value, text] = arguments;
const rows = [...document.querySelectorAll("details.turn")].filter(row => row.textContent.includes(turn));
const cells = [...rows[0].querySelectorAll(".ledger tr")].filter(row => row.firstChild.textContent === value);
[...cells[0].querySelectorAll("button")].find(button => button.textContent === text).click();
"""


def test_labels_of_findings_are_exported_as_calibrate_reads_them(window: Browser, tmp_path: Path) -> None:
    broken = [{"value": "Truth", "score": -1, "confidence": 1, "reason": "r"}]
    broken += [{"value": "Care", "score": 0.5, "confidence": 1, "reason": "<b>r</b>"}]
    answers = {1: "first </script>\n\u2028 answer", 2: "second", 3: "x" * (MOST_TEXT + 1)}
    records = [record(n, conscienceLedger=broken, finalOutput=text, spiritScore=2) for n, text in answers.items()]
    window.goto(written(tmp_path, records))
    window.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "down")}
    )
    window.ask(OPEN)
    window.wait()
    assert window.ask("return document.querySelectorAll('.labels button').length") == 8  # none of the cut text
    assert window.ask("return document.getElementById('labels').hidden")
    clicks = [("question 1", "Truth", "agree"), ("question 1", "Care", "disagree"), ("question 2", "Truth", "agree")]
    clicks += [("question 2", "Truth", "disagree"), ("question 2", "Care", "agree"), ("question 2", "Care", "agree")]
    for click_on in clicks:  # the second of two takes the first back or away
        window.driver.execute_script(LABEL, *click_on)
    assert window.ask("return document.getElementById('export').textContent") == "Export 3 labels"
    window.ask("document.getElementById('export').click()")
    file = tmp_path / "down" / "labels.jsonl"
    for _ in range(100):
        if file.is_file():
            break
        time.sleep(0.1)
    rows = read_labels(file, THREE).rows
    assert [(row.answer, row.value, row.verdict, row.id) for row in rows] == [
        (answers[1], "Truth", "violation", "t-1"),
        (answers[1], "Care", "violation", "t-1"),
        (answers[2], "Truth", "approve", "t-2"),
    ]
    assert {row.prompt for row in rows} == {"question 1", "question 2"}
    assert (window.errors(), window.requests()) == ([], [])


def test_an_erased_turn_is_marked(window: Browser, tmp_path: Path) -> None:
    erased = {"userPrompt": "", "finalOutput": "", "erased": "5a" * 32, "spiritScore": 2}
    recorded = {"timestamp": "2026-03-01T08:00:00Z", "erasedTurns": ["a"], "turnId": "b"}
    seal = {"line": 1, "prev": "0" * 64, "mac": "0" * 64}
    page = written(tmp_path, [record(1, **erased), record(2, spiritScore=2), {**recorded, **seal}])
    window.goto(page)
    assert shown(window) == ["question 2", "Contents erased"]
    window.ask(OPEN)
    window.wait()
    marks = window.ask("return [...document.querySelectorAll('.whole > p')].map(mark => mark.textContent)")
    assert marks == ["The contents of this turn were erased."]
